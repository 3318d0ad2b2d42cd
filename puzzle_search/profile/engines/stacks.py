"""What is measured: a variant in children of nothing but its repeats, as far as engines allow."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from puzzle_search.arch import (
    Gqa,
    NoOp,
    ParentConfig,
    SearchSpace,
    Subblock,
    Variant,
    parse_variant,
)

Skipped = list[dict[str, str]]


@dataclass(frozen=True, kw_only=True)
class Stack:
    """One variant at one tensor-parallel degree, with its local shapes.

    Attributes:
        subblock: attention or FFN.
        name: the variant's name in the whole model.
        tp: the tensor-parallel degree.
        config: the parent, with the shapes that one of ``tp`` devices holds.
        local: the variant's name in those shapes.
        beside: what the engine wants in every block beside the variant; its time is taken off.
    """

    subblock: Subblock
    name: str
    tp: int
    config: ParentConfig
    local: str
    beside: Stack | None = None

    @property
    def attends(self) -> bool:
        """Whether its time depends on the context."""
        return isinstance(parse_variant(self.subblock, self.name), Gqa)

    def __str__(self) -> str:
        return f"{self.subblock} {self.name}, tp {self.tp}"


def measurable(space: SearchSpace) -> Iterator[tuple[Subblock, str, Variant]]:
    """Subblock, name and variant of what takes time at all."""
    subblocks: tuple[Subblock, Subblock] = ("attention", "ffn")
    for subblock in subblocks:
        for name in space.all_variants(subblock):
            variant = parse_variant(subblock, name)
            if not isinstance(variant, NoOp):
                yield subblock, name, variant
