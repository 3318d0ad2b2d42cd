"""Lower bound, multipliers and first selections from the linear relaxation.

The relaxation of a multiple-choice knapsack with few limits has a dual in as many dimensions as
there are limits. It is solved by Dantzig-Wolfe column generation: a master LP mixes selections,
its duals price the limits, and the cheapest selection at those prices joins the master until none
improves it (Dantzig and Wolfe 1960; for this knapsack, Kellerer, Pferschy and Pisinger, Knapsack
Problems, 2004, section 11.2). Where items stand for runs of layers the cheapest selection is a
shortest path. Any prices give a valid bound, so stopping early is safe.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from puzzle_search.solve.problem.items import Floats, Selection
from puzzle_search.solve.problem.point import PointProblem

_MAX_ROUNDS = 60
_TOLERANCE = 1e-9
# Rounding of the sums in a bound, as a part of their terms.
_ROUNDING = 4e-15
# A slack in the master costs this many times the whole spread of the objective, so that it stays
# empty whenever the limits can be met.
_SLACK_PRICE = 1e4


@dataclass(frozen=True, kw_only=True)
class Relaxation:
    """What the relaxation of one operating point tells.

    Attributes:
        bound: no feasible selection has a smaller objective; infinite if none is feasible.
        above: (items,), objective above the bound that each item forces at least.
        prices: objective per unit of each limit at the optimum.
        selections: the last selections made, near the limits but not always within them.
    """

    bound: float
    above: Floats
    prices: Floats
    selections: tuple[Selection, ...]


def relax(point: PointProblem, start: Sequence[Selection] = ()) -> Relaxation:
    """Solve the relaxation at one operating point, from selections of a similar one."""
    point, floor, spread = point.normalised()
    items, usage = point.items, point.usage
    prices = np.zeros(len(point.limits))
    master = _Master(point.limits)
    best_bound, best_prices = -np.inf, prices
    seen: set[bytes] = set()
    for selection in start or [items.cheapest(amounts) for amounts in usage]:
        master.add(point.value(selection), point.used(selection))
    if start:
        prices = _prices_of(master, prices)
    selections: list[Selection] = []
    for _ in range(_MAX_ROUNDS):
        selection = items.cheapest(point.objective + prices @ usage)
        used = point.used(selection)
        paid = point.value(selection) + float(prices @ used)
        bound = paid - float(prices @ point.limits)
        bound -= _ROUNDING * (paid + float(prices @ np.abs(point.limits)))
        if bound > best_bound:
            best_bound, best_prices = bound, prices
        selections.append(selection)
        if best_bound > 1 + _TOLERANCE or selection.tobytes() in seen:
            break
        seen.add(selection.tobytes())
        master.add(point.value(selection), used)
        solved = master.solve()
        if solved is None:
            break
        value, prices = solved
        if value - best_bound <= _TOLERANCE * abs(value):
            break
    # No selection at all has an objective above 1.
    infeasible = best_bound > 1 + _TOLERANCE
    above = items.above_cheapest(point.objective + best_prices @ usage)
    return Relaxation(
        bound=np.inf if infeasible else floor + spread * best_bound,
        above=spread * above,
        prices=spread * best_prices,
        selections=tuple(selections[-4:]),
    )


class _Master:
    """Mix selections so that the limits hold on average, at the least objective."""

    def __init__(self, limits: Floats) -> None:
        # Here, so that profiles are measured where there is no solver.
        from ortools.linear_solver import pywraplp

        self._solver = pywraplp.Solver.CreateSolver("GLOP")
        infinity = self._solver.infinity()
        self._rows = [self._solver.Constraint(-infinity, float(limit)) for limit in limits]
        self._convexity = self._solver.Constraint(1.0, 1.0)
        self._objective = self._solver.Objective()
        self._objective.SetMinimization()
        for row in self._rows:
            slack = self._solver.NumVar(0.0, infinity, "")
            row.SetCoefficient(slack, -1.0)
            self._objective.SetCoefficient(slack, _SLACK_PRICE)

    def add(self, value: float, used: Floats) -> None:
        column = self._solver.NumVar(0.0, self._solver.infinity(), "")
        self._convexity.SetCoefficient(column, 1.0)
        self._objective.SetCoefficient(column, value)
        for row, amount in zip(self._rows, used, strict=True):
            row.SetCoefficient(column, float(amount))

    def solve(self) -> tuple[float, Floats] | None:
        """Value and prices of the limits; None if the LP solver met numerical trouble."""
        if self._solver.Solve() != self._solver.OPTIMAL:
            return None
        prices = np.array([max(0.0, -row.dual_value()) for row in self._rows])
        return float(self._objective.Value()), prices


def _prices_of(master: _Master, otherwise: Floats) -> Floats:
    solved = master.solve()
    return otherwise if solved is None else solved[1]
