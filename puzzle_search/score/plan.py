"""How much memory scoring takes, and which replacements go through the layers together."""

from __future__ import annotations

import math
from collections import defaultdict
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
from puzzle_search.checkpoint.names import FINAL_NORM
from puzzle_search.errors import InputError
from puzzle_search.score.metrics import COSINE
from puzzle_search.score.vocabulary import Wanted
from puzzle_search.score.weights import Sources, tile_rows

# Tokens that pass through a subblock at once: what stays in cache, or fills a GPU. Whatever the
# memory, so that scores are.
_CHUNK_TOKENS = {"cpu": 512, "cuda": 8192}
# Replacements times tokens of one sweep. Reading the weights once more for the next sweep then
# costs a few percent at most, and a killed run loses no more than this.
_SWEEP_TOKENS = 2**20
# Buffers of the math libraries, and what the allocator does not give back at once.
_OVERHEAD_BYTES = 64 * 2**20


@dataclass(frozen=True, kw_only=True)
class SweepPlan:
    """Whether weights stay in memory, and how many candidates go together.

    Attributes:
        resident: the base's weights are read once and kept; a sweep is then of one layer.
        candidates: in a sweep.
    """

    resident: bool
    candidates: int

    def sweeps(self, replacements: Sequence[Replacement]) -> Iterator[list[Replacement]]:
        """Replacements that go through the layers together, by their first layer."""
        sweep: list[Replacement] = []
        for replacement in sorted(replacements, key=lambda r: r[0]):
            other_layer = self.resident and sweep and replacement[0] != sweep[0][0]
            if len(sweep) == self.candidates or other_layer:
                yield sweep
                sweep = []
            sweep.append(replacement)
        if sweep:
            yield sweep


def chunk_rows(device: torch.device, length: int) -> int:
    """Blocks of tokens that pass through a subblock at once."""
    tokens = _CHUNK_TOKENS.get(device.type, _CHUNK_TOKENS["cpu"])
    return max(1, tokens // length)


def plan_sweeps(
    sources: Sources,
    blocks: Sequence[Replacement],
    replacements: Sequence[Replacement],
    shape: tuple[int, int],
    wanted: Wanted,
    limit_bytes: float | None,
) -> SweepPlan:
    """How to keep within a limit of memory.

    Args:
        sources: of the weights.
        blocks: of the base.
        replacements: to score.
        shape: blocks of tokens, and their length.
        wanted: what is measured.
        limit_bytes: for weights, hidden states and logits together; None for no limit.

    Raises:
        InputError: the limit is less than one candidate needs.
    """
    tokens = shape[0] * shape[1]
    together = max(1, _SWEEP_TOKENS // tokens)
    if limit_bytes is None:
        return SweepPlan(resident=True, candidates=together)
    memory = _Memory(sources, blocks, replacements, shape, wanted)
    least = memory.fixed_bytes + memory.candidate_bytes
    if limit_bytes < least:
        raise InputError(
            f"scoring {tokens} tokens takes at least {math.ceil(least / 2**20)}MiB, and the "
            f"limit is {limit_bytes / 2**20:.0f}MiB",
            remedy="allow that much memory, or score on fewer tokens",
        )
    room = limit_bytes - memory.fixed_bytes - memory.kept_bytes
    by_layer: dict[int, int] = defaultdict(int)
    for replacement in replacements:
        by_layer[replacement[0]] += 1
    if room >= min(together, max(by_layer.values(), default=1)) * memory.candidate_bytes:
        return SweepPlan(
            resident=True, candidates=min(together, int(room // memory.candidate_bytes))
        )
    room = limit_bytes - memory.fixed_bytes
    return SweepPlan(resident=False, candidates=min(together, int(room // memory.candidate_bytes)))


class _Memory:
    """Bytes of what is held at the worst moment."""

    def __init__(
        self,
        sources: Sources,
        blocks: Sequence[Replacement],
        replacements: Sequence[Replacement],
        shape: tuple[int, int],
        wanted: Wanted,
    ) -> None:
        config, device = sources.config, torch.device(sources.device)
        width = sources.dtype.itemsize
        tokens = shape[0] * shape[1]
        stream = normed = tokens * config.hidden_size * 4
        tally = tokens * (20 + 12 * (1 + wanted.parent_top) + 4 * wanted.compared)
        self.candidate_bytes = stream + tally

        chunk = chunk_rows(device, shape[1]) * shape[1]
        rows = min(tile_rows(device), config.vocab_size)
        # Loading into another precision holds both for a moment.
        stored = sources.open_parent().tensor(FINAL_NORM, (config.hidden_size,)).dtype
        loaded = width + (stored.itemsize if stored != sources.dtype else 0)
        if any("@" in name for block in (*blocks, *replacements) for name in block[2:]):
            loaded = stored.itemsize + 4 + width  # rounded in fp32
        tile = rows * config.hidden_size * (4 + (stored.itemsize if stored.itemsize < 4 else 0))
        own = _block_parameters(config, "", "")  # which no variant exceeds
        one_by_one = all(map(sources.shares_subblocks, (*blocks, *replacements)))
        weights = (max(own) if one_by_one else sum(own)) * loaded
        ffn = parse_variant("ffn", config.ffn)
        streams_inside = 8 + 3 * routed_copies(ffn, config)
        values = 3 * ffn_channels(ffn, config) + streams_inside * config.hidden_size
        inside = chunk * values * width
        logits = 2 * chunk * rows * 4
        if width < 4:  # the parent's beside a candidate's, and its tile in both precisions
            logits += 2 * chunk * rows * 4 + rows * config.hidden_size * width
        attentions: dict[int, set[str]] = defaultdict(set)
        for first, _, attention, _ in replacements:
            attentions[first].add(attention)
        # The base, where the next sweep begins, the parent beside a child, outputs of attention.
        streams = 4 + max(map(len, attentions.values()), default=0)
        targets = normed * (1 + wanted.exact_kl) + stream * (COSINE in wanted.metrics)
        targets += tokens * (20 + 12 * wanted.parent_top)
        self.fixed_bytes = weights + max(inside, tile + logits) + streams * stream + targets
        self.fixed_bytes += _OVERHEAD_BYTES

        kept = sum(sum(_block_parameters(config, *block[2:])) for block in blocks)
        if any(block[2] or block[3] for block in blocks):  # the parent's own, beside a child's
            kept += config.num_layers * sum(own)
        self.kept_bytes = kept * width + config.vocab_size * config.hidden_size * 4


def _block_parameters(config: ParentConfig, attention: str, ffn: str) -> tuple[int, int]:
    """Parameters of a block's attention and FFN; an empty name is the parent's own."""
    return (
        subblock_parameters(parse_variant("attention", attention or config.attention), config),
        subblock_parameters(parse_variant("ffn", ffn or config.ffn), config),
    )
