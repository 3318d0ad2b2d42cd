"""One disclosed scalar between what the parts say and what the whole engine takes."""

from __future__ import annotations

from dataclasses import dataclass

from numpy.typing import ArrayLike

from puzzle_search.arch import Subblock
from puzzle_search.cost.latency import Evidence, LatencyModel, Microseconds, Phase


@dataclass(frozen=True, kw_only=True)
class ScaledLatency:
    """A latency model times a scalar, measured on the parent and kept for every child."""

    base: LatencyModel
    scalar: float

    @property
    def evidence(self) -> Evidence:
        """The evidence of the model that is scaled."""
        return self.base.evidence

    def subblock_us(
        self,
        subblock: Subblock,
        variant: str,
        phase: Phase,
        *,
        batch: ArrayLike,
        tokens: ArrayLike,
        context: ArrayLike,
        tp: int,
    ) -> Microseconds:
        """Scaled microseconds of one subblock."""
        base_us = self.base.subblock_us(
            subblock, variant, phase, batch=batch, tokens=tokens, context=context, tp=tp
        )
        return base_us * self.scalar

    def outside_us(
        self, phase: Phase, *, batch: ArrayLike, tokens: ArrayLike, tp: int
    ) -> Microseconds:
        """Scaled microseconds outside the blocks."""
        return self.base.outside_us(phase, batch=batch, tokens=tokens, tp=tp) * self.scalar
