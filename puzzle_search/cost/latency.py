"""What every predictor of latency answers, whether it reads a profile or a cost model."""

from __future__ import annotations

from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from puzzle_search.arch import Subblock
from puzzle_search.cost.step import Step

Phase = Literal["prefill", "decode"]
Evidence = Literal["measured", "derived", "published", "reconstructed", "datasheet"]
Microseconds = NDArray[np.float64]


class LatencyModel(Protocol):
    """Predicts the time of a subblock in an engine step, and of what stands outside the blocks."""

    @property
    def evidence(self) -> Evidence:
        """Where the numbers come from."""
        ...

    def subblock_us(self, subblock: Subblock, variant: str, step: Step) -> Microseconds:
        """Microseconds of one subblock with its norm, residual and all-reduce, per step."""
        ...

    def outside_us(self, step: Step) -> Microseconds:
        """Microseconds of embedding, final norm, output head, sampling and engine, per step."""
        ...
