"""A good answer before the exact step: repair what the relaxation selected, then improve it.

The nearer this comes to the optimum, the more items their prices rule out. Runs of layers stay as
they were selected; only the variants within them change.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from puzzle_search.solve.problem.items import Floats, Selection
from puzzle_search.solve.problem.point import PointProblem
from puzzle_search.solve.search.relaxation import Relaxation

# Pairs of swaps are tried among so many single ones, those that force the least.
_PAIRED_SWAPS = 600


def feasible_answer(point: PointProblem, relaxation: Relaxation) -> Selection | None:
    """The best of the relaxation's selections, repaired and improved."""
    point, floor, unit = point.normalised()
    repaired = (_repair(point, selection) for selection in relaxation.selections)
    found = [_improve(point, selection) for selection in repaired if selection is not None]
    if not found:
        return None
    best = min(found, key=point.value)
    bound = (relaxation.bound - floor) / unit
    return _improve_in_pairs(point, relaxation.above / unit, bound, best)


class _Swaps:
    """Items that could take the place of those selected, one at a time."""

    def __init__(self, point: PointProblem, selection: Selection) -> None:
        position_of_run = np.full(int(point.items.run_of[-1]) + 1, -1)
        position_of_run[point.items.run_of[selection]] = np.arange(len(selection))
        position = position_of_run[point.items.run_of]
        self.items = np.flatnonzero(position >= 0)
        self.position: NDArray[np.intp] = position[self.items]
        self._point = point

    def usage_change(self, selection: Selection) -> Floats:
        """(limits, swaps)."""
        usage = self._point.usage
        change: Floats = usage[:, self.items] - usage[:, selection][:, self.position]
        return change

    def objective_change(self, selection: Selection) -> Floats:
        """(swaps,)."""
        objective = self._point.objective
        change: Floats = objective[self.items] - objective[selection][self.position]
        return change


def _repair(point: PointProblem, start: Selection) -> Selection | None:
    """Swap items, the least objective per excess removed first, until every limit holds."""
    selection, swaps = start.copy(), _Swaps(point, start)
    for _ in range(4 * len(start)):
        excess = point.used(selection) - point.limits
        over = np.maximum(excess, 0.0)
        if not over.any():
            return selection
        left = np.maximum(excess[:, None] + swaps.usage_change(selection), 0.0).sum(axis=0)
        removed = over.sum() - left
        added = np.maximum(swaps.objective_change(selection), 1e-12)
        rate = np.where(removed > 1e-15, added / np.maximum(removed, 1e-300), np.inf)
        chosen = int(rate.argmin())
        if not np.isfinite(rate[chosen]):
            return None
        selection[swaps.position[chosen]] = swaps.items[chosen]
    return None


def _improve(point: PointProblem, start: Selection) -> Selection:
    """Swap single items for a smaller objective while every limit holds."""
    selection, swaps = start.copy(), _Swaps(point, start)
    for _ in range(4 * len(start)):
        slack = point.limits - point.used(selection)
        fits = (swaps.usage_change(selection) <= slack[:, None]).all(axis=0)
        gain = np.where(fits, -swaps.objective_change(selection), -np.inf)
        chosen = int(gain.argmax())
        if not gain[chosen] > 1e-15:
            break
        selection[swaps.position[chosen]] = swaps.items[chosen]
    return selection


def _improve_in_pairs(
    point: PointProblem, above: Floats, bound: float, start: Selection
) -> Selection:
    """Swap two items at a time, which may trade one limit against another."""
    selection, swaps = start.copy(), _Swaps(point, start)
    for _ in range(4 * len(start)):
        promising = above[swaps.items] <= point.value(selection) - bound
        promising &= swaps.items != selection[swaps.position]
        (found,) = np.nonzero(promising)
        found = found[np.argsort(above[swaps.items[found]])[:_PAIRED_SWAPS]]
        if len(found) == 0:
            break
        slack = point.limits - point.used(selection)
        change = swaps.usage_change(selection)[:, found]
        gain = -swaps.objective_change(selection)[found]
        position = swaps.position[found]
        fits = position[:, None] != position[None, :]
        for row, room in zip(change, slack, strict=True):
            fits &= row[:, None] + row[None, :] <= room
        both = np.where(fits, gain[:, None] + gain[None, :], -np.inf)
        first, second = np.unravel_index(both.argmax(), both.shape)
        if not both[first, second] > 1e-15:
            break
        selection[position[[first, second]]] = swaps.items[found[[first, second]]]
    return selection
