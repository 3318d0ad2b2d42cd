"""Predictions beside measurements, and which of them no fit has seen."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from puzzle_search.cost.modelled.constants import Provenance

_Array = NDArray[np.float64]

_HELD_OUT_ONE_IN = 5


def held_out(*shape: Iterable[object]) -> NDArray[np.bool_]:
    """Which points are held out of the fit: a fifth of the shapes, by a hash of the shape.

    Args:
        shape: columns of whole numbers or names, a point a row.
    """
    digests = (
        hashlib.sha256("|".join(map(str, sizes)).encode()).digest()
        for sizes in zip(*shape, strict=True)
    )
    return np.array([digest[0] % _HELD_OUT_ONE_IN == 0 for digest in digests])


@dataclass(frozen=True, kw_only=True)
class Residuals:
    """Predicted against measured microseconds of one operator in one dtype.

    ``held_out`` marks the points that no fit saw; ``kv_heads`` are those of attention on one
    device, 0 elsewhere.
    """

    operator: str
    dtype: str
    measured_us: _Array
    predicted_us: _Array
    held_out: NDArray[np.bool_]
    kv_heads: NDArray[np.int64]

    @property
    def relative(self) -> _Array:
        """Predicted / measured - 1 of every point."""
        return np.asarray(self.predicted_us / self.measured_us - 1)

    def median_p90(self, chosen: NDArray[np.bool_] | None = None) -> tuple[float, float]:
        """Median and 90th percentile of the absolute relative error, of the held-out points."""
        error = np.abs(self.relative[self.held_out if chosen is None else chosen])
        return float(np.median(error)), float(np.quantile(error, 0.9))

    def provenance(self, source: str) -> Provenance:
        """Constants fitted on the other points, with the errors of those held out."""
        median, p90 = self.median_p90()
        return Provenance(evidence="published", source=source, error_median=median, error_p90=p90)
