"""Measure prefill and decode latency of every variant over a grid.

A variant is measured as a stack of as many distinct copies as the parent has layers, so that
weights come from where they come from in a whole model, and not from a cache that holds one
block. All stacks of a point are run in turn, round after round, so that drift of the clock
falls on all alike; the median over rounds is kept, with its 10th and 90th percentile.
What stands outside the blocks is measured as a decoder whose blocks are all no-ops.
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
from puzzle_search.cost.profile import FORMAT, OUTSIDE, Part
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


@dataclass(frozen=True, kw_only=True)
class _Stack:
    """Copies of one variant, or the decoder of no-ops that stands for the outside."""

    part: Part
    name: str
    variant: Variant | None
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
    points = list(grid.points())
    progress = progress or Progress("profile")
    with progress.over(len(points)) as advance, torch.inference_mode():
        for phase, batch, length in points:
            runs = [
                _stack_run(stack, config, rotary, device, number_type, phase, batch, length)
                for stack in stacks
            ]
            runs.append(_outside_run(outside, device, phase, batch, length))
            seconds = _time_in_turn(runs, device, grid)
            tokens = length if phase == "prefill" else 1
            for stack, samples in zip(stacks, seconds, strict=False):
                per_copy_us = np.array(samples) * 1e6 / len(stack.modules)
                rows.append(_row(stack.part, stack.name, phase, batch, tokens, length, per_copy_us))
            if phase == "prefill" or length == grid.decode_contexts[0]:
                outside_us = np.array(seconds[-1]) * 1e6
                rows.append(_row("outside", OUTSIDE, phase, batch, tokens, length, outside_us))
            advance(f"{phase}, batch {batch}, {length} tokens")
    memory = [_memory_row(stack, config, device, number_type) for stack in stacks]
    return Profile(rows, memory, _sidecar(config, device, dtype))


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


def _outside_run(
    decoder: HeterogeneousDecoder, device: Device, phase: Phase, batch: int, length: int
) -> Callable[[], None]:
    new = length if phase == "prefill" else 1
    ids = torch.randint(decoder.config.vocab_size, (batch, new), device=device.torch_device)
    cache = decoder.new_cache(batch=batch, max_length=length)

    def run() -> None:
        cache.rewind(length - new)
        decoder.next_greedy(ids, cache)

    return run


def _time_in_turn(
    runs: list[Callable[[], None]], device: Device, grid: ProfileGrid
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
    )


def _sidecar(config: ParentConfig, device: Device, dtype: Dtype) -> dict[str, object]:
    return {
        "format": FORMAT,
        "package_version": __version__,
        "evidence": "measured",
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "device": device.identity,
        "engine": "puzzle-search",
        "dtype": dtype.name,
        "model": config.name,
        "memory_limit_bytes": device.memory_limit_bytes,
    }
