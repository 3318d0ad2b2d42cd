"""From final hidden states to metrics."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F

from puzzle_search.arch import Replacement
from puzzle_search.errors import InputError
from puzzle_search.score.metrics import COSINE, Estimate
from puzzle_search.score.vocabulary import Tally, Target, Tile, TopTokens, Wanted, parent_targets
from puzzle_search.score.weights import Weights

# Hidden states of one model, by chunk of rows: (rows, length, D) each.
Stream = list[torch.Tensor]
Measured = tuple[Replacement, dict[str, Estimate]]

BASE: Replacement = (-1, -1, "", "")  # the base itself, nothing replaced


class Judge:
    """Compares candidates with the parent.

    Args:
        weights: give the last norm and the head.
        ids: the tokens, by chunk of rows.
        wanted: what is measured.
        known: the parent's likeliest tokens, where they need not be computed again.
        one_by_one: measure each candidate by itself; else the head is read once for all, as it is
            in bf16 in any case.
    """

    def __init__(
        self,
        weights: Weights,
        ids: Sequence[torch.Tensor],
        wanted: Wanted,
        *,
        known: TopTokens | None,
        one_by_one: bool,
    ) -> None:
        self._weights, self._ids, self._wanted = weights, ids, wanted
        self._by_difference = weights.sources.dtype == torch.bfloat16
        self._one_by_one = one_by_one and not self._by_difference
        self._hidden: Stream | None = None
        self._targets: list[Target] | None = None
        if known is not None and not self._by_difference:
            parts = known.split([part.numel() for part in ids], weights.device)
            self._targets = [Target(top=part) for part in parts]

    @property
    def needs_parent(self) -> bool:
        """Whether the parent's final hidden states are still to be learned."""
        return self._targets is None or (COSINE in self._wanted.metrics and self._hidden is None)

    @property
    def top_tokens(self) -> TopTokens:
        """The parent's likeliest tokens, once they are known."""
        assert self._targets is not None
        return TopTokens.join([target.top for target in self._targets])

    def learn(self, final: Stream) -> None:
        """Take the parent's final hidden states, before the last norm.

        Raises:
            InputError: they are not finite.
        """
        if not all(bool(chunk.isfinite().all()) for chunk in final):
            raise InputError(
                "the parent's hidden states after its last layer are not finite",
                remedy="check the parent's weights, or score with --dtype fp32",
            )
        if COSINE in self._wanted.metrics:
            self._hidden = list(final)
        if self._targets is None:
            normed = [self._weights.normed(chunk) for chunk in final]
            self._targets = parent_targets(
                normed,
                self._ids,
                self._weights.tiles(),
                self._wanted,
                mean_rows=self._wanted.exact_kl and not self._by_difference,
            )

    def measure(self, finals: Sequence[tuple[Replacement, Stream]]) -> Iterator[Measured]:
        """Metrics of candidates from their final hidden states, which are used up.

        Raises:
            InputError: a metric is not finite.
        """
        groups = [[one] for one in finals] if self._one_by_one else [finals]
        for group in groups:
            candidates = [_Candidate(stream, self) for _, stream in group]
            for start, tile_VD in self._weights.tiles():
                self._add_tile(candidates, start, tile_VD)
            for (replacement, _), candidate in zip(group, candidates, strict=True):
                yield replacement, _finite(replacement, candidate.estimates(self._wanted))

    def _add_tile(
        self, candidates: Sequence[_Candidate], start: int, tile_VD: torch.Tensor
    ) -> None:
        assert self._targets is not None
        for chunk, target in enumerate(self._targets):
            if self._by_difference:
                tile = Tile.beside(start, tile_VD, target)
            else:
                tile = Tile(start=start, head_VD=tile_VD)
            for candidate in candidates:
                candidate.tallies[chunk].add(tile)

    def cosine(self, stream: Stream) -> torch.Tensor | None:
        """1 - cosine with the parent's hidden states, mean of every block of tokens, if wanted."""
        if self._hidden is None:
            return None
        pairs = zip(stream, self._hidden, strict=True)
        cosines = [
            F.cosine_similarity(own.float(), parent.float(), dim=-1) for own, parent in pairs
        ]
        return 1 - torch.cat(cosines).double().mean(dim=1)

    def tallies(self, stream: Stream) -> list[Tally]:
        """Counts of one candidate, by chunk; its hidden states are let go."""
        assert self._targets is not None
        found = []
        for number, (target, ids) in enumerate(zip(self._targets, self._ids, strict=True)):
            states_ND = self._weights.normed(stream[number])
            if self._by_difference:
                assert target.normed_ND is not None
                states_ND = (states_ND - target.normed_ND).bfloat16()
            stream[number] = states_ND
            found.append(Tally(states_ND, ids, target, self._wanted))
        return found


class _Candidate:
    def __init__(self, stream: Stream, judge: Judge) -> None:
        self._cosine = judge.cosine(stream)
        self.tallies = judge.tallies(stream)

    def estimates(self, wanted: Wanted) -> dict[str, Estimate]:
        parts = [tally.metrics() for tally in self.tallies]
        blocks = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        if self._cosine is not None:
            blocks[COSINE] = self._cosine
        return {name: Estimate.of(blocks[name]) for name in wanted.metrics}


def _finite(replacement: Replacement, found: dict[str, Estimate]) -> dict[str, Estimate]:
    if all(math.isfinite(estimate.value) for estimate in found.values()):
        return found
    first, last, attention, ffn = replacement
    where = f"layer {first}" if first == last else f"layers {first}-{last}"
    what = (
        "the base itself"
        if replacement == BASE
        else f"{where} with attention {attention or 'of the parent'} and "
        f"FFN {ffn or 'of the parent'}"
    )
    raise InputError(
        f"{what} gives a score that is not finite",
        remedy="check the parent's weights, or train that variant again",
    )
