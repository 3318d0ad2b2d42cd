"""How the prompts of a batch are cut into the steps of a prefill.

The runtime executes this plan and the cost of a prefill is the sum over it, so that what is
measured and what is predicted are the same steps.
"""

from __future__ import annotations

from dataclasses import dataclass

from puzzle_search.cost.memory import PREFILL_CHUNK_TOKENS


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
