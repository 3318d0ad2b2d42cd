"""How the prompts of a batch are cut into the steps of a prefill.

The runtime executes this plan and the cost of a prefill is the sum over it, so that what is
measured and what is predicted are the same steps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from puzzle_search.cost.latency import Microseconds
from puzzle_search.cost.memory import PREFILL_CHUNK_TOKENS

ChunkCost = Callable[[NDArray[np.float64], int, int, bool], Microseconds]
"""Microseconds of chunks by sequences, an array; new tokens; context; and whether prompts end."""


@dataclass(frozen=True, kw_only=True)
class PrefillChunk:
    """One step of a prefill: the same part of the prompts of neighbouring sequences.

    Attributes:
        first_sequence: index in the batch of the first of its sequences.
        sequences: how many sequences it runs.
        tokens: new tokens of each sequence.
        context: tokens of each sequence that are attended to at its end, the new ones among them.
        last: whether these prompts end here, so that their first output token follows.
    """

    first_sequence: int
    sequences: int
    tokens: int
    context: int
    last: bool


def sequences_per_chunk(tokens: int, chunk_tokens: int = PREFILL_CHUNK_TOKENS) -> int:
    """Sequences of ``tokens`` tokens that a chunk holds: whole ones, or one that is cut."""
    return max(1, chunk_tokens // tokens)


def prompt_pieces(tokens: int, chunk_tokens: int = PREFILL_CHUNK_TOKENS) -> list[tuple[int, int]]:
    """New tokens and context of each piece of one prompt, in order.

    A prompt that fits a chunk is one piece; a longer one is cut into full chunks and a rest.
    """
    starts = range(0, tokens, chunk_tokens)
    ends = [min(start + chunk_tokens, tokens) for start in starts]
    return [(end - start, end) for start, end in zip(starts, ends, strict=True)]


def prefill_chunks(
    batch: int, tokens: int, chunk_tokens: int = PREFILL_CHUNK_TOKENS
) -> list[PrefillChunk]:
    """The steps that prefill ``batch`` prompts of ``tokens`` tokens, in order.

    Sequences stay whole: a chunk takes as many as fit into ``chunk_tokens``. A prompt longer than
    a chunk is cut along its length, one sequence at a time.

    Args:
        batch: sequences, at least one.
        tokens: prompt length of each, at least one.
        chunk_tokens: most new tokens in one step.
    """
    assert batch >= 1, batch
    assert tokens >= 1, tokens
    assert chunk_tokens >= 1, chunk_tokens
    group, pieces = sequences_per_chunk(tokens, chunk_tokens), prompt_pieces(tokens, chunk_tokens)
    return [
        PrefillChunk(
            first_sequence=first,
            sequences=min(group, batch - first),
            tokens=new,
            context=context,
            last=context == tokens,
        )
        for first in range(0, batch, group)
        for new, context in pieces
    ]


def sum_over_chunks(
    batch: ArrayLike, tokens: ArrayLike, chunk_tokens: int, chunk_us: ChunkCost
) -> Microseconds:
    """Microseconds of whole prefills: the sum over the steps of `prefill_chunks`.

    Each size of a chunk is priced once, so that thousands of batch sizes cost little.

    Args:
        batch: sequences, whole numbers; broadcasts with ``tokens``.
        tokens: prompt length, whole numbers.
        chunk_tokens: most new tokens in one step.
        chunk_us: microseconds of chunks of so many sequences, new tokens and context; the flag
            says whether the prompts end with it.
    """
    batches, lengths = np.broadcast_arrays(np.asarray(batch), np.asarray(tokens))
    total_us = np.empty(batches.shape)
    for length in np.unique(lengths):
        here = lengths == length
        total_us[here] = _one_length_us(batches[here], int(length), chunk_tokens, chunk_us)
    return total_us


def _one_length_us(
    batches: NDArray[Any], length: int, chunk_tokens: int, chunk_us: ChunkCost
) -> Microseconds:
    group = sequences_per_chunk(length, chunk_tokens)
    full, rest = np.divmod(batches, group)
    sizes = np.unique(np.concatenate([rest, np.full(int(full.any()), group)]))
    sizes = sizes[sizes > 0].astype(np.float64)
    sizes_us = np.zeros(sizes.shape)
    for new, context in prompt_pieces(length, chunk_tokens):
        sizes_us = sizes_us + chunk_us(sizes, new, context, context == length)
    of_size: dict[float, float] = {0.0: 0.0}
    of_size |= {float(size): float(us) for size, us in zip(sizes, sizes_us, strict=True)}
    full_us = np.where(full > 0, full * of_size.get(float(group), 0.0), 0.0)
    return np.asarray(full_us + np.array([of_size[float(size)] for size in rest]))
