"""Lower bound, multipliers and a first answer from the linear relaxation.

The relaxation of a multiple-choice knapsack with few limits has a dual in as many dimensions as
there are limits. It is solved by Dantzig-Wolfe column generation: a master LP mixes selections
(one choice per layer each), its duals price the limits, and the cheapest selection at those
prices joins the master until none improves it (Dantzig and Wolfe 1960; for this knapsack,
Kellerer, Pferschy and Pisinger, Knapsack Problems, 2004, section 11.2). Any prices give a valid
bound, so stopping early is safe.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from ortools.linear_solver import pywraplp

from puzzle_search.solve.problem import Choice, Floats, PointProblem

_MAX_ROUNDS = 60
_TOLERANCE = 1e-9
# Rounding of the sums in a bound, as a part of their terms.
_ROUNDING = 4e-15
# A slack in the master costs this many times the whole spread of damage, so that it stays empty
# whenever the limits can be met.
_SLACK_PRICE = 1e4


@dataclass(frozen=True, kw_only=True)
class Relaxation:
    """What the relaxation of one operating point tells.

    Attributes:
        bound: no feasible choice has less damage; infinite if none is feasible.
        reduced: (layers, choices), damage above the bound that each choice forces at least.
        prices: damage per unit of each limit at the optimum.
        selections: the last selections made, near the limits but not always within them.
    """

    bound: float
    prices: Floats
    reduced: Floats
    selections: list[Choice]


def relax(point: PointProblem) -> Relaxation:
    """Solve the relaxation at one operating point."""
    point, floor, spread = point.normalised()
    layers = np.arange(point.damage.shape[0])
    finite = np.isfinite(point.damage)
    usage = point.usage
    prices = np.zeros(len(point.limits))
    master = _Master(point.limits, _SLACK_PRICE)
    best_bound, best_prices = -np.inf, prices
    seen: set[bytes] = set()
    selections = [_cheapest(amounts, finite) for amounts in usage]
    for choice in selections:
        master.add(_damage(point, choice), usage[:, choice].sum(axis=1))
    for _ in range(_MAX_ROUNDS):
        priced = point.damage + prices @ usage
        choice = priced.argmin(axis=1)
        paid = priced[layers, choice].sum()
        bound = float(paid - prices @ point.limits)
        bound -= _ROUNDING * float(paid + prices @ np.abs(point.limits))
        if bound > best_bound:
            best_bound, best_prices = bound, prices
        selections.append(choice)
        if best_bound > 1 + _TOLERANCE or choice.tobytes() in seen:
            break
        seen.add(choice.tobytes())
        master.add(_damage(point, choice), usage[:, choice].sum(axis=1))
        solved = master.solve()
        if solved is None:
            break
        value, prices = solved
        if value - best_bound <= _TOLERANCE * value:
            break
    priced = point.damage + best_prices @ usage
    reduced = priced - priced.min(axis=1, keepdims=True)
    # No choice at all has more damage than 1.
    infeasible = best_bound > 1 + _TOLERANCE
    return Relaxation(
        bound=np.inf if infeasible else floor + spread * best_bound,
        prices=spread * best_prices,
        reduced=spread * reduced,
        selections=selections[-4:],
    )


def _damage(point: PointProblem, choice: Choice) -> float:
    return float(point.damage[np.arange(len(choice)), choice].sum())


def _cheapest(usage: Floats, finite: NDArray[np.bool_]) -> Choice:
    choice: Choice = np.where(finite, usage[None, :], np.inf).argmin(axis=1)
    return choice


class _Master:
    """Mix selections so that the limits hold on average, at least damage."""

    def __init__(self, limits: Floats, slack_price: float) -> None:
        self._solver = pywraplp.Solver.CreateSolver("GLOP")
        infinity = self._solver.infinity()
        self._rows = [self._solver.Constraint(-infinity, float(limit)) for limit in limits]
        self._convexity = self._solver.Constraint(1.0, 1.0)
        self._objective = self._solver.Objective()
        self._objective.SetMinimization()
        for row in self._rows:
            slack = self._solver.NumVar(0.0, infinity, "")
            row.SetCoefficient(slack, -1.0)
            self._objective.SetCoefficient(slack, slack_price)

    def add(self, damage: float, usage: Floats) -> None:
        column = self._solver.NumVar(0.0, self._solver.infinity(), "")
        self._convexity.SetCoefficient(column, 1.0)
        self._objective.SetCoefficient(column, damage)
        for row, amount in zip(self._rows, usage, strict=True):
            row.SetCoefficient(column, float(amount))

    def solve(self) -> tuple[float, Floats] | None:
        """Value and prices of the limits; None if the LP solver met numerical trouble."""
        if self._solver.Solve() != pywraplp.Solver.OPTIMAL:
            return None
        prices = np.array([max(0.0, -row.dual_value()) for row in self._rows])
        return float(self._objective.Value()), prices
