"""What limits cost, by the multipliers of the relaxation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from puzzle_search.solve.answers.diagnosis import RATES, UNITS
from puzzle_search.solve.problem.measures import Bound
from puzzle_search.solve.search.solution import Solution


@dataclass(frozen=True, kw_only=True)
class Price:
    """What a limit costs: by how much the goal were better if the limit were a step looser.

    ``gain`` is in the goal's own unit; of throughput, tokens/s per GPU more.
    """

    bound: Bound
    step: str
    gain: float

    def as_dict(self) -> dict[str, Any]:
        """The price as results show it."""
        return {
            "limit": self.bound.limit,
            "scenario": self.bound.measure.scenario,
            "step": self.step,
            "gain": self.gain,
        }


def prices(solution: Solution) -> list[Price]:
    """What each limit that binds costs, by the relaxation's multipliers: good for small steps."""
    found, goal, most = [], solution.problem.goal, _most_gain(solution)
    for bound, price in zip(solution.problem.all_bounds, solution.prices, strict=False):
        step, looser = "1%", 0.01 * abs(bound.at_most)
        if bound.limit in RATES:
            looser = bound.at_most * (1 / 0.99 - 1)
        elif bound.limit == "memory_bytes":
            step, looser = "1 GB", 1e9
        elif bound.limit not in UNITS:
            step, looser = "1", 1.0
        if price > 0:
            gain = min(price * looser, most)
            if goal.name == "us_per_token":
                gain = 1e6 / (solution.objective - gain) - 1e6 / solution.objective
            found.append(Price(bound=bound, step=step, gain=gain))
    return found


def _most_gain(solution: Solution) -> float:
    """How much better the goal were without any limit."""
    problem = solution.problem
    point = 0 if problem.goal.scenario is None else solution.points[problem.goal.scenario]
    cheapest = problem.items.cheapest(
        problem.goal.attention[point][problem.items.attention]
        + problem.goal.ffn[point][problem.items.ffn]
        + (0.0 if problem.goal.items is None else problem.goal.items)
    )
    return solution.objective - float(problem.goal.of(problem.items, cheapest)[point])
