"""Tables that correct a first guess: ratios over pairs of axes, interpolated in logarithms.

One table over all sizes of an operator would need more timings than anyone has. Products of tables
over two sizes each need few, and hold what a roofline misses: kernels that change with the number
of rows, caches that hold a matrix, waves that are not full.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

_Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Ratios:
    """Ratio of a latency to its first guess.

    ``axes`` are the knots of the sizes, rising, by name. ``tables`` are named by their two axes,
    ``"rows columns"``: a row for each knot of the first, a column for each of the second. The ratio
    at a point is the product of all tables there. Beyond its knots a table stays at its edge.
    """

    axes: Mapping[str, _Array]
    tables: Mapping[str, _Array]

    def at(self, **sizes: ArrayLike) -> _Array:
        """The ratio at sizes named by axis, of shapes that broadcast."""
        logarithm = np.zeros(())
        for name, table in self.tables.items():
            weights, cells = table_cells(
                *(self.axes[axis] for axis in name.split()), *(sizes[axis] for axis in name.split())
            )
            entries = np.log(table).ravel()[cells]
            logarithm = logarithm + np.sum(weights * entries, axis=0)
        return np.asarray(np.exp(logarithm))


def table_cells(
    first_knots: _Array, second_knots: _Array, first: ArrayLike, second: ArrayLike
) -> tuple[_Array, NDArray[np.intp]]:
    """Bilinear weights, in logarithms, and flat indices of the four entries around each point.

    Both have a leading axis of four; points outside the table take its edge.
    """
    i, s = _knots(first_knots, first)
    j, t = _knots(second_knots, second)
    weights = np.stack([(1 - s) * (1 - t), (1 - s) * t, s * (1 - t), s * t])
    corner, width = i * len(second_knots) + j, len(second_knots)
    return weights, np.stack([corner, corner + 1, corner + width, corner + width + 1])


def _knots(knots: _Array, sizes: ArrayLike) -> tuple[NDArray[np.intp], _Array]:
    """Index of the knot below each size and the share of the next one, clipped to the knots."""
    place = np.interp(np.log2(sizes), np.log2(knots), np.arange(len(knots)))
    index = np.minimum(place, len(knots) - 2).astype(np.intp)
    return index, place - index
