"""Measure prefill and decode latency of every variant over a grid.

A variant is measured as a stack of as many distinct copies as the parent has layers, so that
weights come from where they come from in a whole model, and not from a cache that holds one
block. All stacks of a point are run in turn, round after round, so that drift of the clock
falls on all alike; the median over rounds is kept, with its 10th and 90th percentile.
Outside the blocks, embedding and head (final norm, output head, greedy sampling) are measured
alone; what a step costs besides is that of a decoder whose blocks are all no-ops, less these two.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from puzzle_search import __version__
from puzzle_search.arch import (
    ArchitectureSpec,
    Gqa,
    ParentConfig,
    SearchSpace,
    Subblock,
    Variant,
    parse_variant,
)
from puzzle_search.cost import Dtype, LatencyRow, MemoryRow, Profile, Scenario
from puzzle_search.cost.latency import Phase
from puzzle_search.cost.memory import PREFILL_CHUNK_TOKENS
from puzzle_search.cost.profile_file import FORMAT
from puzzle_search.cost.profile_rows import EMBEDDING, HEAD, STEP, GroupRow, Part
from puzzle_search.model import HeterogeneousDecoder, Rotary, SubblockModule, make_subblock
from puzzle_search.model.cache import LayerCache
from puzzle_search.model.dtypes import torch_dtype
from puzzle_search.profile.device import Device
from puzzle_search.progress import Progress


@dataclass(frozen=True, kw_only=True)
class ProfileGrid:
    """Where to measure.

    Attributes:
        batches: batch sizes.
        prefill_tokens: prompt lengths.
        decode_contexts: tokens attended to in a decode step.
        min_rounds: rounds at each point, at least.
        point_seconds: time for all variants at one point, once ``min_rounds`` are done.
    """

    batches: tuple[int, ...]
    prefill_tokens: tuple[int, ...]
    decode_contexts: tuple[int, ...]
    min_rounds: int = 7
    point_seconds: float = 1.5

    @classmethod
    def around(
        cls, scenario: Scenario, batches: tuple[int, ...], *, point_seconds: float = 1.5
    ) -> ProfileGrid:
        """The smallest grid that covers a scenario."""
        first, last = scenario.input_len + 1, scenario.input_len + scenario.output_len
        return cls(
            batches=tuple(sorted(set(batches))),
            prefill_tokens=(scenario.input_len,),
            decode_contexts=tuple(sorted({first, (first + last) // 2, last})),
            point_seconds=point_seconds,
        )

    def points(self) -> Iterator[tuple[Phase, int, int]]:
        """Phase, batch and length of every point."""
        for batch in self.batches:
            for tokens in self.prefill_tokens:
                yield "prefill", batch, tokens
            for context in self.decode_contexts:
                yield "decode", batch, context


_RESOLUTION_US = 0.001
# Largest (p90 - p10) / median of a steady row.
_STEADY_SPREAD = 0.02
_CEILING_SIZE = 1024
_CEILING_GRID = ProfileGrid(
    batches=(), prefill_tokens=(), decode_contexts=(), min_rounds=5, point_seconds=0.0
)


@dataclass(frozen=True, kw_only=True)
class _Stack:
    """Copies of one variant."""

    part: Part
    name: str
    variant: Variant
    modules: list[SubblockModule]


def measure_profile(
    config: ParentConfig,
    space: SearchSpace,
    device: Device,
    dtype: Dtype,
    grid: ProfileGrid,
    *,
    progress: Progress | None = None,
) -> Profile:
    """Measure every variant of a search space on a device, with random weights.

    Raises:
        InputError: the dtype cannot be run by this engine.
    """
    number_type = torch_dtype(dtype.name)
    stacks = list(_make_stacks(config, space, device, number_type))
    outside = _random_decoder(config, device, number_type)
    rotary = Rotary(config)
    rows: list[LatencyRow] = []
    groups: list[GroupRow] = []
    points = list(grid.points())
    progress = progress or Progress("profile")
    with progress.over(len(points)) as advance, torch.inference_mode():
        for group, (phase, batch, length) in enumerate(points):
            runs: list[Callable[[], object]] = [
                _stack_run(stack, config, rotary, device, number_type, phase, batch, length)
                for stack in stacks
            ]
            runs += _outside_runs(outside, device, phase, batch, length)
            begun = device.clock()
            us = np.array(_time_in_turn(runs, device, grid)) * 1e6
            groups.append(_group(group, device.clock() - begun))
            found: list[tuple[Part, str, np.ndarray]] = [
                (stack.part, stack.name, samples / len(stack.modules))
                for stack, samples in zip(stacks, us, strict=False)
            ]
            if phase == "prefill" or length == grid.decode_contexts[0]:
                whole, embedding, head = us[-3:]
                # What is left may be less than the clock resolves.
                step = np.maximum(whole - embedding - head, _RESOLUTION_US)
                found += [("outside", EMBEDDING, embedding), ("outside", HEAD, head)]
                found.append(("outside", STEP, step))
            tokens = length if phase == "prefill" else 1
            rows += [
                _row(part, name, phase, batch, tokens, length, samples, group)
                for part, name, samples in found
            ]
            advance(f"{phase}, batch {batch}, {length} tokens")
        ceilings = _ceilings(device, number_type, dtype)
    memory = [_memory_row(stack, config, device, number_type) for stack in stacks]
    return Profile(rows, memory, groups, _sidecar(config, device, dtype, ceilings))


def _make_stacks(
    config: ParentConfig, space: SearchSpace, device: Device, dtype: torch.dtype
) -> Iterator[_Stack]:
    subblocks: tuple[Subblock, Subblock] = ("attention", "ffn")
    for subblock in subblocks:
        for name in space.all_variants(subblock):
            variant = parse_variant(subblock, name)
            if not variant.tensors(config):
                continue
            modules = []
            for _ in range(config.num_layers):
                with device.torch_device:
                    module = make_subblock(variant, config).to(dtype)
                for parameter in module.parameters():
                    torch.nn.init.normal_(parameter, std=0.02)
                modules.append(module.requires_grad_(False).eval())
            yield _Stack(part=subblock, name=name, variant=variant, modules=modules)


def _random_decoder(
    config: ParentConfig, device: Device, dtype: torch.dtype
) -> HeterogeneousDecoder:
    empty = ArchitectureSpec.of(config.name, [("no_op", "no_op")] * config.num_layers)
    with device.torch_device:
        return HeterogeneousDecoder(config, empty).to(dtype).requires_grad_(False).eval()


def _stack_run(
    stack: _Stack,
    config: ParentConfig,
    rotary: Rotary,
    device: Device,
    dtype: torch.dtype,
    phase: Phase,
    batch: int,
    length: int,
) -> Callable[[], None]:
    """One pass through the stack: a whole prompt, or one token on top of a context."""
    new = length if phase == "prefill" else 1
    x = torch.randn(batch, new, config.hidden_size, dtype=dtype, device=device.torch_device)
    angles = rotary.slice(length - new, new, x)
    caches: list[LayerCache | None] = [None] * len(stack.modules)
    if isinstance(stack.variant, Gqa):
        caches = [
            LayerCache(
                stack.variant,
                config,
                batch=batch,
                max_length=length,
                dtype=dtype,
                device=device.torch_device,
            )
            for _ in stack.modules
        ]

    def run() -> None:
        hidden = x
        for module, cache in zip(stack.modules, caches, strict=True):
            if cache is not None:
                cache.length = length - new
            hidden = module(hidden, angles, cache)

    return run


def _outside_runs(
    decoder: HeterogeneousDecoder, device: Device, phase: Phase, batch: int, length: int
) -> list[Callable[[], object]]:
    """A step without blocks, its embedding alone, and its head alone."""
    new = length if phase == "prefill" else 1
    ids = torch.randint(decoder.config.vocab_size, (batch, new), device=device.torch_device)
    last = decoder.embedding(ids[:, -1:])
    cache = decoder.new_cache(batch=batch, max_length=length)

    def step() -> None:
        cache.rewind(length - new)
        decoder.next_greedy(ids, cache)

    return [step, lambda: decoder.embedding(ids), lambda: decoder.logits(last).argmax(-1)]


def _ceilings(device: Device, number_type: torch.dtype, dtype: Dtype) -> dict[str, object]:
    """Best of a few runs of a large matrix product and a large copy."""
    size = _CEILING_SIZE
    a = torch.randn(size, size, dtype=number_type, device=device.torch_device)
    b, to = torch.randn_like(a), torch.empty(8, *a.shape, dtype=number_type, device=a.device)
    source = torch.randn_like(to)

    def best(run: Callable[[], object]) -> float:
        return min(_time_in_turn([run], device, _CEILING_GRID)[0])

    return {
        "copy_bytes_per_second": 2 * to.nbytes / best(lambda: to.copy_(source)),
        "matmul_flops_per_second": {dtype.name: 2 * size**3 / best(lambda: a @ b)},
    }


def _time_in_turn(
    runs: list[Callable[[], object]], device: Device, grid: ProfileGrid
) -> list[list[float]]:
    """Seconds of every run, round after round."""
    for run in runs:
        run()
        run()
    samples: list[list[float]] = [[] for _ in runs]
    begun = device.clock()
    while len(samples[0]) < grid.min_rounds or device.clock() - begun < grid.point_seconds:
        for run, kept in zip(runs, samples, strict=True):
            start = device.clock()
            run()
            kept.append(device.clock() - start)
    return samples


def _row(
    part: Part,
    name: str,
    phase: Phase,
    batch: int,
    tokens: int,
    context: int,
    latency_us: np.ndarray,
    group: int,
) -> LatencyRow:
    p10, median, p90 = np.percentile(latency_us, [10, 50, 90])
    return LatencyRow(
        subblock=part,
        variant=name,
        phase=phase,
        batch=batch,
        tokens=tokens,
        context=context,
        tp=1,
        latency_us=round(float(median), 3),
        latency_us_p10=round(float(p10), 3),
        latency_us_p90=round(float(p90), 3),
        repeats=len(latency_us),
        steady=bool((p90 - p10) / median <= _STEADY_SPREAD),
        group=group,
    )


def _group(group: int, seconds: float) -> GroupRow:
    return GroupRow(
        group=group,
        seconds=round(seconds, 3),
        sm_clock_mhz=None,
        memory_clock_mhz=None,
        temperature_c=None,
        power_watts=None,
        throttle="",
        other_processes=None,
    )


def _memory_row(
    stack: _Stack, config: ParentConfig, device: Device, dtype: torch.dtype
) -> MemoryRow:
    kv_bytes = 0
    if isinstance(stack.variant, Gqa):
        cache = LayerCache(
            stack.variant,
            config,
            batch=1,
            max_length=1,
            dtype=dtype,
            device=device.torch_device,
        )
        kv_bytes = cache.num_bytes
    weights = sum(parameter.nbytes for parameter in stack.modules[0].parameters())
    return MemoryRow(
        subblock=stack.part,
        variant=stack.name,
        tp=1,
        weight_bytes=weights,
        kv_bytes_per_token=kv_bytes,
        workspace_bytes=0,
        workspace_rows=0,
    )


def _sidecar(
    config: ParentConfig, device: Device, dtype: Dtype, ceilings: dict[str, object]
) -> dict[str, object]:
    return {
        "format": FORMAT,
        "package_version": __version__,
        "evidence": "measured",
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "device": device.identity,
        "engine": "puzzle-search",
        "dtype": dtype.name,
        "model": config.name,
        "parent_config": dict(config.raw),
        "memory_limit_bytes": device.memory_limit_bytes,
        "prefill_chunk_tokens": PREFILL_CHUNK_TOKENS,
        "ceilings": ceilings,
        "skipped": [],
        "interpolation": {"points": 0, "median": None, "p90": None, "worst": None},
    }
