"""What every predictor of latency answers, whether it reads a profile or a cost model."""

from __future__ import annotations

from typing import Literal, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from puzzle_search.arch import Subblock

Phase = Literal["prefill", "decode"]
Evidence = Literal["measured", "derived", "published", "reconstructed", "datasheet"]
Microseconds = NDArray[np.float64]


class LatencyModel(Protocol):
    """Predicts the time of one subblock, and of what stands outside the blocks.

    ``batch``, ``tokens`` and ``context`` broadcast together. ``tokens`` are the new tokens of
    each sequence in this step (1 in decode), ``context`` the tokens each sequence attends to,
    the new ones among them.
    """

    @property
    def evidence(self) -> Evidence:
        """Where the numbers come from."""
        ...

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
        """Microseconds of one subblock with its norm, residual and all-reduce."""
        ...

    def outside_us(
        self, phase: Phase, *, batch: ArrayLike, tokens: ArrayLike, tp: int
    ) -> Microseconds:
        """Microseconds of embedding, final norm, output head, sampling and engine step."""
        ...
