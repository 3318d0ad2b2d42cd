"""How much memory distillation takes, and how it is shared out: an estimate in bytes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from puzzle_search.arch import (
    ParentConfig,
    Replacement,
    ffn_channels,
    parse_variant,
    routed_copies,
    subblock_parameters,
)
from puzzle_search.errors import InputError
from puzzle_search.library.bld import BldSettings

# A student's, alike in fp32 (weights, gradients, two moments, best and first weights: 6 x 4) and in
# bf16 (weights, gradients, best and first weights: 4 x 2; masters, their gradients and two moments
# in fp32: 4 x 4).
_BYTES_PER_PARAMETER = 24


@dataclass(frozen=True, kw_only=True)
class MemoryPlan:
    """What goes where.

    Attributes:
        states_on_disk: hidden states are written to files and read in parts.
        group_bytes: what students that train side by side may take together; one always may.
    """

    states_on_disk: bool
    group_bytes: float


def student_bytes(replacement: Replacement, config: ParentConfig) -> int:
    """Bytes of a student with its optimizer state."""
    _, _, attention, ffn = replacement
    parameters = 0
    if attention:
        parameters += subblock_parameters(parse_variant("attention", attention), config)
    if ffn:
        parameters += subblock_parameters(parse_variant("ffn", ffn), config)
    return parameters * _BYTES_PER_PARAMETER


def groups(
    replacements: Sequence[Replacement], config: ParentConfig, group_bytes: float
) -> Iterator[list[Replacement]]:
    """Split students, in their order, into groups that fit; a group has at least one."""
    group: list[Replacement] = []
    held = 0
    for replacement in replacements:
        size = student_bytes(replacement, config)
        if group and held + size > group_bytes:
            yield group
            group, held = [], 0
        group.append(replacement)
        held += size
    if group:
        yield group


def plan_memory(
    replacements: Sequence[Replacement],
    config: ParentConfig,
    settings: BldSettings,
    *,
    tokens: int,
    length: int,
    dtype: torch.dtype,
    max_memory_bytes: float | None,
    files_needed: bool,
) -> MemoryPlan:
    """Decide where hidden states live and how many students train side by side.

    States in memory are read at no cost, so students train one after another, and a killed run
    loses one. States on disk are read once for as many students as fit.

    Args:
        replacements: what is to be trained.
        config: the parent.
        settings: how to train.
        tokens: of all hidden states, training and held-out.
        length: tokens in a block of text.
        dtype: what is computed in.
        max_memory_bytes: for weights, students and hidden states together; None for no limit.
        files_needed: hidden states must be on disk, since other processes read them.

    Raises:
        InputError: one layer of the parent and its largest student do not fit.
    """
    working = _working_bytes(replacements, config, settings, length, dtype)
    needed = working + max((student_bytes(key, config) for key in replacements), default=0)
    run = max((last - first + 1 for first, last, *_ in replacements), default=1)
    places = 2 * run + 1  # before, in the middle of and after each layer
    states = places * tokens * config.hidden_size * 4
    if max_memory_bytes is None:
        return MemoryPlan(states_on_disk=files_needed, group_bytes=math.inf if files_needed else 0)
    if needed > max_memory_bytes:
        raise InputError(
            f"{max_memory_bytes / 2**20:,.0f} MiB of memory are too few: one layer of "
            f"{config.name} and its largest student need about {needed / 2**20:,.0f} MiB",
            remedy=f"give at least {math.ceil(needed / 2**20)}MiB, or fewer tokens to a step",
        )
    if not files_needed and needed + states <= max_memory_bytes:
        return MemoryPlan(states_on_disk=False, group_bytes=0)
    return MemoryPlan(states_on_disk=True, group_bytes=max_memory_bytes - working)


def _working_bytes(
    replacements: Sequence[Replacement],
    config: ParentConfig,
    settings: BldSettings,
    length: int,
    dtype: torch.dtype,
) -> int:
    """A parent layer, activations of a step, sums of least squares, copies of initialisers."""
    attention, ffn = parse_variant("attention", config.attention), parse_variant("ffn", config.ffn)
    subblocks = [subblock_parameters(variant, config) for variant in (attention, ffn)]
    layer = sum(subblocks)
    # The parent's subblock in fp32, what two initialisers make of it, and the best so far.
    copies = 4 * 4 * max(subblocks)
    hidden = config.hidden_size
    queries, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    # Of a token: the residual stream around both subblocks, projections and attended values,
    # attention weights where no fused kernel serves, the FFN's channels and what goes to its
    # experts and comes from them; their gradients too.
    values = 10 * hidden + 4 * (queries + keys) + 2 * config.num_heads * length
    values += 5 * ffn_channels(ffn, config) + 3 * routed_copies(ffn, config) * hidden
    step_tokens = max(settings.batch_tokens, length)
    step = step_tokens * (2 * values * dtype.itemsize + 4 * 4 * hidden)
    linear = any("linear" in key for key in replacements)
    sums = 4 * 8 * hidden**2 if linear else 0
    embedding = config.vocab_size * hidden * dtype.itemsize
    return max(layer * dtype.itemsize + step + sums + copies, embedding)
