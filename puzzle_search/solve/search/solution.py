"""The answer and its proof."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from puzzle_search.arch import ArchitectureSpec
from puzzle_search.cost import ScenarioCost
from puzzle_search.solve.problem.items import Selection
from puzzle_search.solve.problem.problem import Problem

Status = Literal["optimal", "feasible"]


@dataclass(frozen=True, kw_only=True)
class Solution:
    """An architecture that keeps the limits, and how near the best it is known to be.

    Attributes:
        problem: what was asked.
        selection: its items in the problem.
        points: operating point of each scenario, index into its table.
        status: ``optimal`` if proven over all operating points, else ``feasible``.
        objective: the goal's measure of the answer.
        bound: no architecture that keeps the limits has less of the goal's measure.
        gap: (objective - bound) / objective, 0 when proven (to 1e-9); where they are negative, in
            units of the larger magnitude.
        prices: objective per unit of each bound's measure, by order of `Problem.all_bounds`, from
            the relaxation at the operating point where the answer was found; none where it was
            known before.
        seconds: time the search took.
    """

    problem: Problem
    selection: Selection
    points: tuple[int, ...]
    status: Status
    objective: float
    bound: float
    gap: float
    prices: tuple[float, ...]
    seconds: float

    @property
    def spec(self) -> ArchitectureSpec:
        """The architecture."""
        return self.problem.spec(self.selection)

    @property
    def score(self) -> float:
        """Summed damage of the architecture."""
        return self.problem.score(self.selection)

    @property
    def costs(self) -> tuple[ScenarioCost, ...]:
        """Predicted cost in each scenario."""
        return tuple(
            workload.table.cost(self.spec, index)
            for workload, index in zip(self.problem.workloads, self.points, strict=True)
        )

    @property
    def cost(self) -> ScenarioCost:
        """Predicted cost in the first scenario."""
        return self.costs[0]

    def proof(self) -> dict[str, Any]:
        """How good the answer is known to be."""
        goal = self.problem.goal.name
        shown: dict[str, Any] = {"status": self.status, "score": self.score}
        if goal == "score":
            shown["bound"] = self.bound
        elif goal == "us_per_token":
            shown |= {
                "goal": "tokens_per_second_per_gpu",
                "objective": 1e6 / self.objective,
                "bound": 1e6 / self.bound if self.bound else None,
            }
        else:
            shown |= {"goal": goal, "objective": self.objective, "bound": self.bound}
        return shown | {"gap": self.gap, "seconds": round(self.seconds, 4)}
