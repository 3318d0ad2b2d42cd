"""The batch size of highest throughput that fits in memory: by formula, then by trial."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from puzzle_search.arch import ArchitectureSpec, ParentConfig, ffn_channels, routed_copies
from puzzle_search.cost import Dtype, Scenario
from puzzle_search.cost.memory import (
    activation_bytes,
    kv_bytes,
    outside_bytes,
    weight_bytes,
)
from puzzle_search.errors import InputError
from puzzle_search.evaluate.sampled import sample_throughput
from puzzle_search.evaluate.served_model import free_memory
from puzzle_search.evaluate.throughput import open_engine
from puzzle_search.runtime import ServingDecoder

MAX_BATCH = 1024
_REPEATS = 3  # of a chunk of prompts, and of a decode step at the middle of the output
_PATIENCE = 2  # halvings in a row that are no faster, after which smaller batches are not tried


@dataclass(frozen=True, kw_only=True)
class BatchChoice:
    """A batch size and why.

    Attributes:
        batch: the one that was asked for, or the fastest that was tried.
        fits: the largest by memory, at most `MAX_BATCH`; None where the batch was asked for.
        tried: estimated tokens per second by batch size; None where memory ran out.
    """

    batch: int
    fits: int | None = None
    tried: Mapping[int, float | None] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """The choice as results carry it."""
        return dict(vars(self))

    def __str__(self) -> str:
        if self.fits is None:
            return f"batch {self.batch}, as asked"
        seen = ", ".join(
            f"{batch}: " + ("out of memory" if rate is None else f"{rate:,.0f} tok/s")
            for batch, rate in self.tried.items()
        )
        return f"batch {self.batch}, the fastest of those tried ({seen}); {self.fits} fit in memory"


def serving_bytes(
    config: ParentConfig, spec: ArchitectureSpec, dtype: Dtype, scenario: Scenario, batch: int
) -> int:
    """Weights, KV cache and activations of a batch on one device, by closed form."""
    variants = [v for block in spec.blocks for v in (block.attention_variant, block.ffn_variant)]
    return (
        sum(weight_bytes(variant, config, dtype, 1) for variant in variants)
        + outside_bytes(config, dtype, 1)
        + batch * sum(kv_bytes(variant, config, dtype, 1, scenario.tokens) for variant in variants)
        + activation_bytes(
            config,
            dtype,
            batch=batch,
            input_len=scenario.input_len,
            tp=1,
            widest_ffn=max(ffn_channels(variant, config) for variant in variants),
            routed=max(routed_copies(variant, config) for variant in variants),
        )
    )


def largest_batch(
    config: ParentConfig,
    spec: ArchitectureSpec,
    dtype: Dtype,
    scenario: Scenario,
    memory_limit_bytes: int,
) -> int:
    """The largest batch, up to `MAX_BATCH`, that fits by closed form.

    Raises:
        InputError: not even one sequence fits.
    """
    for batch in range(MAX_BATCH, 0, -1):
        if serving_bytes(config, spec, dtype, scenario, batch) <= memory_limit_bytes:
            return batch
    needed = serving_bytes(config, spec, dtype, scenario, 1)
    raise InputError(
        f"one sequence of {scenario} takes {needed / 1e9:.1f} GB of {config.name} in "
        f"{dtype.name}, but {memory_limit_bytes / 1e9:.1f} GB are to be had",
        remedy="use a smaller dtype, a shorter scenario, or a larger device",
    )


def choose_batch(
    decoder: ServingDecoder,
    scenario: Scenario,
    *,
    memory_limit_bytes: int,
    clock: Callable[[], float],
) -> BatchChoice:
    """Try batch sizes from the largest that fits downwards, each half the last.

    A trial times one chunk of prompts and a few decode steps. It ends when two halvings in a row
    were no faster.

    Args:
        decoder: the weights, on the device.
        scenario: prompt and output length.
        memory_limit_bytes: what weights, KV cache and activations may take.
        clock: seconds now, once all work submitted to the device has ended.

    Raises:
        InputError: not even one sequence fits.
    """
    fits = largest_batch(
        decoder.config, decoder.spec, decoder.precision.dtype, scenario, memory_limit_bytes
    )
    tried: dict[int, float | None] = {}
    batch, best, slower = fits, 0, 0
    while batch and slower < _PATIENCE:
        rate = tried[batch] = _try(decoder, scenario, batch, clock)
        free_memory()
        if rate is not None:
            faster = not best or rate > (tried[best] or 0)
            best, slower = (batch, 0) if faster else (best, slower + 1)
        batch //= 2
    if not best:
        raise InputError(
            f"the device ran out of memory at every batch size from {fits} down",
            remedy="free its memory: other processes may hold it",
        )
    return BatchChoice(batch=best, fits=fits, tried=tried)


def _try(
    decoder: ServingDecoder, scenario: Scenario, batch: int, clock: Callable[[], float]
) -> float | None:
    """Tokens per second as estimated, or None where memory runs out."""
    try:
        engine = open_engine(decoder, scenario, batch)
        sampled = sample_throughput(engine, scenario, clock=clock, contexts=1, repeats=_REPEATS)
    except torch.OutOfMemoryError:
        return None
    return sampled.tokens_per_second
