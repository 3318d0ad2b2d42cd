"""A step of an engine: what a profile measures parts of."""

from __future__ import annotations

from dataclasses import dataclass

from puzzle_search.cost.latency import Phase
from puzzle_search.files import Size


@dataclass(frozen=True, kw_only=True)
class Point:
    """New tokens of some sequences, over what each attends to at its end."""

    phase: Phase
    batch: Size
    tokens: Size
    context: Size

    @property
    def rows(self) -> int:
        """New tokens of all sequences."""
        return self.batch * self.tokens

    @property
    def history(self) -> int:
        """Tokens of each sequence that a prefill step finds in the cache; none in decode."""
        return self.context - self.tokens if self.phase == "prefill" else 0

    @property
    def size(self) -> tuple[int, int]:
        """Order of points by the memory that they take."""
        return self.batch * self.context, self.batch

    def holds(self, other: Point) -> bool:
        """Whether it takes all the memory that another point of its phase takes."""
        return (
            self.phase == other.phase
            and self.batch >= other.batch
            and self.context >= other.context
        )

    def __str__(self) -> str:
        return f"{self.phase}, batch {self.batch}, {self.tokens} tokens, context {self.context}"
