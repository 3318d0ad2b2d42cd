"""Which lattices are measured of each subject, and which point of an engine each place is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from puzzle_search.arch import Gqa, ParentConfig, Variant, kept_tokens
from puzzle_search.cost.measured.profile_rows import EMBEDDING, HEAD, STEP
from puzzle_search.profile.points.grid import ProfileGrid
from puzzle_search.profile.points.point import Point
from puzzle_search.profile.points.subjects import Subject
from puzzle_search.profile.sampling.readings import Measured
from puzzle_search.profile.sampling.refine import LatticeSearch, Place

SUBBLOCK = "subblock"
"""The one part of a subblock's stack."""


@dataclass(frozen=True, kw_only=True)
class Series:
    """Points of one part of a subject, on one lattice.

    Attributes:
        subject: that is measured.
        part: of it.
        search: chooses the places.
        point: the step that a place stands for.
    """

    subject: Subject
    part: str
    search: LatticeSearch
    point: Callable[[Place], Point]

    def measured(self, place: Place) -> Measured:
        """What a reading at a place is of."""
        return Measured(subject=self.subject.key, part=self.part, point=self.point(place))


def subblock_series(
    subject: Subject, variant: Variant, config: ParentConfig, grid: ProfileGrid, kv_tokens: int
) -> list[Series]:
    """Lattices of a subblock: of tokens alone, or of batch and length where it attends.

    Args:
        subject: of the variant.
        variant: of the subblock.
        config: the parent.
        grid: what to cover.
        kv_tokens: most tokens that the caches of a decode step can hold.
    """
    if not isinstance(variant, Gqa):
        return [_token_series(subject, SUBBLOCK, grid)]
    decode = LatticeSearch(
        grid.batches,
        grid.contexts,
        asked=lambda batch, context: batch * kept_tokens(variant, config, context) <= kv_tokens,
        adaptive=grid.adaptive,
    )
    prefill = LatticeSearch(
        grid.chunk_sequences(),
        grid.chunk_lengths(),
        asked=lambda sequences, tokens: sequences * tokens <= grid.chunk_tokens,
        overhang=grid.adaptive,
        adaptive=grid.adaptive,
        first_cut=1,  # time grows with the square of a prompt
    )
    history = LatticeSearch(
        *grid.histories(),
        asked=lambda new, before: new + before <= config.max_context,
        adaptive=False,
    )
    return [
        Series(subject=subject, part=SUBBLOCK, search=decode, point=_decode_point),
        Series(subject=subject, part=SUBBLOCK, search=prefill, point=_prefill_point),
        Series(subject=subject, part=SUBBLOCK, search=history, point=_history_point),
    ]


def outside_series(subject: Subject, grid: ProfileGrid) -> list[Series]:
    """Embedding by tokens, head by sequences."""
    heads = LatticeSearch(grid.head_batches(), adaptive=grid.adaptive)
    return [
        _token_series(subject, EMBEDDING, grid),
        Series(
            subject=subject, part=HEAD, search=heads, point=lambda at: _decode_point((at[0], 1))
        ),
    ]


def step_series(subject: Subject, config: ParentConfig, grid: ProfileGrid) -> list[Series]:
    """Whole steps of the bare engine by sequences: decode, and prefill of the shortest prompt."""
    tokens = min(*grid.prompts, grid.chunk_tokens, config.max_context - 1)
    decode = LatticeSearch(grid.batches, adaptive=grid.adaptive)
    prefill = LatticeSearch(grid.chunk_sequences(), adaptive=grid.adaptive)
    return [
        Series(
            subject=subject, part=STEP, search=decode, point=lambda at: _decode_point((at[0], 1))
        ),
        Series(
            subject=subject,
            part=STEP,
            search=prefill,
            point=lambda at: _prefill_point((at[0], tokens)),
        ),
    ]


def _token_series(subject: Subject, part: str, grid: ProfileGrid) -> Series:
    """By tokens of a step: decode steps as far as batches go, one prompt beyond."""
    most = max(grid.batches)

    def point(place: Place) -> Point:
        rows = place[0]
        return _decode_point((rows, 1)) if rows <= most else _prefill_point((1, rows))

    search = LatticeSearch(grid.rows(), adaptive=grid.adaptive)
    return Series(subject=subject, part=part, search=search, point=point)


def _decode_point(place: Place) -> Point:
    batch, context = place
    return Point(phase="decode", batch=batch, tokens=1, context=context)


def _prefill_point(place: Place) -> Point:
    sequences, tokens = place
    return Point(phase="prefill", batch=sequences, tokens=tokens, context=tokens)


def _history_point(place: Place) -> Point:
    new, before = place
    return Point(phase="prefill", batch=1, tokens=new, context=new + before)
