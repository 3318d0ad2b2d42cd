"""Curves and lattices of measured points: exact on them, linear between, NaN outside.

Linear is exact for an operator that costs a + b x, and bilinear for a + b x + c y + d x y, as the
matrices and the attention of a batch over a context do.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

_Array = NDArray[np.float64]
_Side = Literal["right", "left"]
_SIDES: tuple[_Side, _Side] = ("right", "left")


class Curve:
    """Linear interpolation of points on a line.

    Args:
        points: value by position; at least one.
    """

    def __init__(self, points: Mapping[float, float]) -> None:
        self.knots = np.array(sorted(points), dtype=np.float64)
        self.values = np.array([points[knot] for knot in self.knots.tolist()])

    def at(self, position: ArrayLike) -> _Array:
        """Values at some positions; NaN beyond the first and the last knot."""
        wanted = np.asarray(position, np.float64)
        return np.asarray(
            np.interp(wanted, self.knots, self.values, left=np.nan, right=np.nan), np.float64
        )


class Lattice:
    """Bilinear interpolation of points on a lattice, which may have gaps.

    Where a cell lacks only the corner that is farthest from the origin, as along the limit of what
    fits in memory, that corner is f10 f01 / f00: exact for a power law c x^a y^b, and a little low
    where a constant cost is part of it. A cell that lacks another corner has values on its measured
    edges and corners alone.

    Args:
        points: value by (x, y) position; at least one.
    """

    def __init__(self, points: Mapping[tuple[float, float], float]) -> None:
        self.x = np.array(sorted({x for x, _ in points}), dtype=np.float64)
        self.y = np.array(sorted({y for _, y in points}), dtype=np.float64)
        self.table = np.array(
            [[points.get((x, y), np.nan) for y in self.y.tolist()] for x in self.x.tolist()]
        )

    def at(self, x: ArrayLike, y: ArrayLike) -> _Array:
        """Values at some positions, which broadcast; NaN outside what was measured."""
        at_x, at_y = np.asarray(x, np.float64), np.asarray(y, np.float64)
        value = np.full(np.broadcast_shapes(at_x.shape, at_y.shape), np.nan)
        # A position on an edge belongs to the cells on both sides: one may lack what the other has.
        for side_x, side_y in itertools.product(_SIDES, _SIDES):
            value = np.where(np.isnan(value), self._of_cells(at_x, at_y, side_x, side_y), value)
        return value

    def _of_cells(self, x: _Array, y: _Array, side_x: _Side, side_y: _Side) -> _Array:
        i, i_next, u = _bracket(self.x, x, side_x)
        j, j_next, v = _bracket(self.y, y, side_y)
        f00, f01 = self.table[i, j], self.table[i, j_next]
        f10, f11 = self.table[i_next, j], self.table[i_next, j_next]
        # Zero has no power law: 0 / 0 stays unknown.
        with np.errstate(invalid="ignore"):
            f11 = np.where(np.isnan(f11), f10 * f01 / f00, f11)
        return _mix(_mix(f00, f01, v), _mix(f10, f11, v), u)


def _mix(low: _Array, high: _Array, share: _Array) -> _Array:
    """Between two values; what has no share may be unknown."""
    mixed = low * (1 - share) + high * share
    return np.where(share == 0, low, np.where(share == 1, high, mixed))


def _bracket(
    axis: _Array, at: _Array, side: _Side
) -> tuple[NDArray[np.intp], NDArray[np.intp], _Array]:
    """Index of the knots around each position, and the share of the second; NaN off the axis.

    A position on a knot lies at the near (right) or at the far (left) end of a cell.
    """
    below = np.clip(np.searchsorted(axis, at, side=side) - 1, 0, max(0, len(axis) - 2))
    above = np.minimum(below + 1, len(axis) - 1)
    width = axis[above] - axis[below]
    share = np.divide(at - axis[below], width, out=np.zeros(at.shape), where=width > 0)
    return below, above, np.where((at < axis[0]) | (at > axis[-1]), np.nan, share)
