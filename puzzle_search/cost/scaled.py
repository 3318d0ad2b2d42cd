"""One disclosed scalar between what the parts say and what the whole engine takes."""

from __future__ import annotations

from dataclasses import dataclass

from puzzle_search.arch import Subblock
from puzzle_search.cost.latency import Evidence, LatencyModel, Microseconds
from puzzle_search.cost.step import Step


@dataclass(frozen=True, kw_only=True)
class ScaledLatency:
    """A latency model times a scalar, measured on the parent and kept for every child."""

    base: LatencyModel
    scalar: float

    @property
    def evidence(self) -> Evidence:
        """The evidence of the model that is scaled."""
        return self.base.evidence

    def subblock_us(self, subblock: Subblock, variant: str, step: Step) -> Microseconds:
        """Scaled microseconds of one subblock."""
        return self.base.subblock_us(subblock, variant, step) * self.scalar

    def outside_us(self, step: Step) -> Microseconds:
        """Scaled microseconds outside the blocks."""
        return self.base.outside_us(step) * self.scalar
