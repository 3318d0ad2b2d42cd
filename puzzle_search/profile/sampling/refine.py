"""Where to measure next: a lattice that is refined where interpolation misses what is measured.

First the lattice itself. Then the middle of every cell is measured as a held-out point and compared
with what the profile would have interpolated there. A cell that misses by more than the tolerance
is cut along its longer side: a new knot, measured across the lattice, and two cells to check.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise

from puzzle_search.cost.measured.interpolation import Lattice

Place = tuple[int, int]
"""Position on the two axes of a lattice; a curve is a lattice with one knot on the second."""

TOLERANCE = 0.03
"""Relative interpolation error that is small enough."""

LATTICE_URGENCY = 2.0
"""Of the places that a lattice begins with: without them nothing can be interpolated."""

_FIRST_CHECK_URGENCY = 1.0  # before any refinement
_CHECKS_PER_CELL = 1.5  # with the refinement that they ask for


@dataclass(frozen=True, kw_only=True)
class _Cell:
    """A rectangle between knots; its middle is to be checked."""

    low: Place
    high: Place
    urgency: float

    @property
    def middle(self) -> Place | None:
        """Geometric middle; None where no whole number lies between the knots of either axis."""
        at = tuple(_between(a, b) or a for a, b in zip(self.low, self.high, strict=True))
        return None if at == self.low else (at[0], at[1])

    def cut(self, axis: int, knot: int, urgency: float) -> tuple[_Cell, _Cell]:
        """The parts on both sides of a knot."""
        low, high = list(self.low), list(self.high)
        high[axis] = low[axis] = knot
        return (
            _Cell(low=self.low, high=(high[0], high[1]), urgency=urgency),
            _Cell(low=(low[0], low[1]), high=self.high, urgency=urgency),
        )


@dataclass(frozen=True, kw_only=True)
class _Insertion:
    """A knot that is being measured across the lattice."""

    axis: int
    knot: int
    urgency: float


class LatticeSearch:
    """Chooses the points of one lattice.

    Args:
        x: knots of the first axis to begin with.
        y: knots of the second.
        asked: which places may be asked for; the lattice has gaps elsewhere.
        overhang: measure places just beyond what is asked too, so that everything asked lies
            between measured points.
        adaptive: whether to check and refine.
        first_cut: axis that is cut first where a cell is equally long on both.
    """

    def __init__(
        self,
        x: Iterable[int],
        y: Iterable[int] = (1,),
        *,
        asked: Callable[[int, int], bool] = lambda _x, _y: True,
        overhang: bool = False,
        adaptive: bool = True,
        first_cut: int = 0,
    ) -> None:
        self._axes = [sorted(set(x)), sorted(set(y))]
        self._asked = asked
        self._overhang = overhang
        self._first_cut = first_cut
        self._readings: dict[Place, tuple[float, float]] = {}
        self._lost: set[Place] = set()
        self._errors: dict[Place, float] = {}
        self._missed: list[tuple[float, _Cell]] = []
        self._insertion: _Insertion | None = None
        self._open = list(self._cells()) if adaptive and self._required(self._axes) else []

    @property
    def places(self) -> list[Place]:
        """Places of the lattice that were measured; what was held out and not kept is not here."""
        return [place for place in self._required(self._axes) if place in self._readings]

    @property
    def expected(self) -> int:
        """Points that are likely still to come: of the lattice, held out, and of some knots."""
        return len(self._missing(self._axes)) + math.ceil(_CHECKS_PER_CELL * len(self._open))

    @property
    def errors(self) -> list[float]:
        """Relative interpolation errors at held-out points, of the cells as they are now."""
        return list(self._errors.values())

    def wanted(self) -> dict[Place, float]:
        """Places to measure next, with their urgency; empty when there is nothing left to do."""
        missing = self._missing(self._axes)
        if missing:
            return dict.fromkeys(missing, LATTICE_URGENCY)
        if self._insertion is not None:
            with_knot = self._with(self._insertion.axis, self._insertion.knot)
            return dict.fromkeys(self._missing(with_knot), self._insertion.urgency)
        return {cell.middle: cell.urgency for cell in self._open if cell.middle is not None}

    def take(self, place: Place, latency_us: float, spread: float) -> None:
        """A place that was wanted has been measured.

        Args:
            place: where.
            latency_us: median.
            spread: (p90 - p10) / median: smaller errors mean nothing.
        """
        self._readings[place] = latency_us, spread
        self._go_on()

    def lose(self, place: Place) -> None:
        """A place that was wanted cannot be measured."""
        self._lost.add(place)
        self._go_on()

    def _go_on(self) -> None:
        if self._missing(self._axes):
            return
        done = False
        while not done:
            self._check()
            done = not self._insert()

    def _check(self) -> None:
        """Judge the cells whose middle is known."""
        lattice = Lattice({place: self._readings[place][0] for place in self.places})
        knots = set(self._required(self._axes))
        still_open = []
        for cell in self._open:
            middle = cell.middle
            # In a lattice that was refined nearby, a middle may be a knot: nothing is held out.
            if middle is None or middle in knots or middle in self._lost:
                continue
            predicted_us = float(lattice.at(*middle))
            if math.isnan(predicted_us) or not self._asked(*middle):
                continue
            if middle not in self._readings:
                still_open.append(cell)
                continue
            measured_us, spread = self._readings[middle]
            error = abs(predicted_us / measured_us - 1)
            self._errors[middle] = error
            if error > max(TOLERANCE, spread):
                self._missed.append((error, cell))
            else:
                self._keep_if_free(middle)
        self._open = still_open

    def _keep_if_free(self, middle: Place) -> None:
        """Let a held-out point join a lattice that needs no more points for it, as a curve."""
        for axis in (0, 1):
            knot = middle[axis]
            if knot not in self._axes[axis] and not self._missing(self._with(axis, knot)):
                self._axes = self._with(axis, knot)
                return

    def _insert(self) -> bool:
        """Begin or end the insertion of a knot; whether a lattice changed by it."""
        if self._insertion is None:
            if not self._missed:
                return False
            error, cell = max(self._missed, key=lambda missed: missed[0])
            axis = self._longer_side(cell)
            middle = cell.middle
            assert middle is not None
            self._insertion = _Insertion(
                axis=axis, knot=middle[axis], urgency=min(error, _FIRST_CHECK_URGENCY)
            )
        axis, knot = self._insertion.axis, self._insertion.knot
        with_knot = self._with(axis, knot)
        if self._missing(with_knot):
            return False
        self._axes, self._insertion = with_knot, None
        whole = []
        for error, cell in self._missed:
            if cell.low[axis] < knot < cell.high[axis]:
                assert cell.middle is not None
                del self._errors[cell.middle]
                self._open += cell.cut(axis, knot, min(error, _FIRST_CHECK_URGENCY))
            else:
                whole.append((error, cell))
        self._missed = whole
        return True

    def _longer_side(self, cell: _Cell) -> int:
        middle = cell.middle
        assert middle is not None
        ratios = [cell.high[axis] / cell.low[axis] for axis in (0, 1)]
        for axis in (0, 1):
            if middle[axis] == cell.low[axis]:  # nothing between its knots
                ratios[axis] = 0.0
        if ratios[0] == ratios[1]:
            return self._first_cut
        return ratios.index(max(ratios))

    def _with(self, axis: int, knot: int) -> list[list[int]]:
        axes = [list(knots) for knots in self._axes]
        axes[axis] = sorted({*axes[axis], knot})
        return axes

    def _missing(self, axes: list[list[int]]) -> list[Place]:
        known = self._readings.keys() | self._lost
        return [place for place in self._required(axes) if place not in known]

    def _required(self, axes: list[list[int]]) -> list[Place]:
        return [
            (x, y) for i, x in enumerate(axes[0]) for j, y in enumerate(axes[1])
            if self._asked(x, y) or self._overhangs(axes, i, j)
        ]  # fmt: skip

    def _overhangs(self, axes: list[list[int]], i: int, j: int) -> bool:
        x, y = axes[0][i], axes[1][j]
        return self._overhang and (
            (i > 0 and self._asked(axes[0][i - 1] + 1, y))
            or (j > 0 and self._asked(x, axes[1][j - 1] + 1))
        )

    def _cells(self) -> Iterable[_Cell]:
        x, y = ([*pairwise(k)] or [(k[0], k[0])] for k in self._axes)
        for x_low, x_high in x:
            for y_low, y_high in y:
                yield _Cell(low=(x_low, y_low), high=(x_high, y_high), urgency=_FIRST_CHECK_URGENCY)


def _between(low: int, high: int) -> int | None:
    """The whole number at the geometric middle, if it lies between."""
    middle = round(math.sqrt(low * high))
    return middle if low < middle < high else None
