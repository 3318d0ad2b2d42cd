"""The best architecture over all operating points, with its proof.

For each operating point the relaxation gives a lower bound and prices. Points are then closed in
order of their bounds, until one's bound reaches the best answer so far, since no later one can
hold a better answer. A point's selections are repaired into an answer; choices whose reduced cost
exceeds the distance between bound and best answer cannot be part of a better one and are fixed
away (Ingargiola and Korsh 1975), dominated choices too, and an exact
solver settles what is left.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from puzzle_search.arch import (
    ArchitectureSpec,
    architecture_parameters,
    kv_values_per_token,
)
from puzzle_search.cost import ScenarioCost
from puzzle_search.errors import InfeasibleError
from puzzle_search.solve.diagnosis import explain_infeasible
from puzzle_search.solve.exact import Backend, solve_core
from puzzle_search.solve.problem import Choice, PointProblem, Problem
from puzzle_search.solve.relaxation import Relaxation, feasible_answer, relax

Status = Literal["optimal", "feasible"]

# Scores closer than this fraction are equal: their own standard errors are far larger.
_RELATIVE_GAP = 1e-9

DEFAULT_BACKEND: Backend = "scip"


@dataclass(frozen=True, kw_only=True)
class Solution:
    """The answer and its proof.

    Attributes:
        status: ``optimal`` if proven over all operating points, else ``feasible``.
        score: summed damage of the architecture.
        bound: no architecture that keeps the limits has less damage.
        gap: (score - bound) / score, 0 when proven.
        seconds: time the search took.
    """

    status: Status
    score: float
    bound: float
    gap: float
    seconds: float
    spec: ArchitectureSpec
    cost: ScenarioCost
    problem: Problem

    @property
    def parameters(self) -> int:
        """Parameters of the child."""
        return architecture_parameters(self.spec, self.problem.config)

    @property
    def kv_bytes_per_token(self) -> int:
        """KV cache of one token over all devices, at the target's precision."""
        values = sum(
            kv_values_per_token(block.attention_variant, self.problem.config)
            for block in self.spec.blocks
        )
        return values * self.problem.cost.target.dtype.kv_bytes

    def as_dict(self) -> dict[str, Any]:
        """The answer as ``solve --json`` prints it."""
        return {
            "status": self.status,
            "score": self.score,
            "bound": self.bound,
            "gap": self.gap,
            "seconds": round(self.seconds, 4),
            "architecture": {
                "parent": self.spec.parent,
                "blocks": [block.as_dict() for block in self.spec.blocks],
            },
            "params": self.parameters,
            "kv_bytes_per_token": self.kv_bytes_per_token,
            "scenarios": [self.cost.as_dict()],
            "evidence": {
                "scores": self.problem.score_evidence,
                "cost": self.problem.cost.target.latency.evidence,
            },
        }

    def spec_with_solution(self, **inputs: str) -> ArchitectureSpec:
        """The spec, carrying how it was found; ``inputs`` are hashes of what it was found from."""
        found = {key: value for key, value in self.as_dict().items() if key != "architecture"}
        found["limits"] = self.problem.limits.asked()
        return ArchitectureSpec(
            parent=self.spec.parent, blocks=self.spec.blocks, solution=found | {"inputs": inputs}
        )


def solve(
    problem: Problem, *, max_seconds: float = 60.0, backend: Backend = DEFAULT_BACKEND
) -> Solution:
    """Find the architecture of least damage within the limits, over all operating points.

    Args:
        problem: damages, costs and limits.
        max_seconds: time limit; when it ends the search the status is ``feasible``.
        backend: solver of the exact step; all give the same answer.

    Raises:
        InfeasibleError: no architecture keeps the limits; says what is reachable.
    """
    begun = time.perf_counter()
    deadline = begun + max_seconds
    best: Choice | None = None
    best_score = np.inf
    open_points: list[tuple[Relaxation, PointProblem]] = []
    for index in range(len(problem.cost.points)):
        point = problem.at(index)
        relaxation = relax(point)
        if np.isfinite(relaxation.bound):
            open_points.append((relaxation, point))

    proven_bound = np.inf
    for relaxation, point in sorted(open_points, key=lambda entry: entry[0].bound):
        tolerance = _RELATIVE_GAP * abs(best_score) if np.isfinite(best_score) else 0.0
        if relaxation.bound >= best_score - tolerance:
            break
        answer = feasible_answer(point, relaxation)
        if answer is not None and problem.score(answer) < best_score:
            best, best_score = answer, problem.score(answer)
        kept = _undominated(point) & (relaxation.reduced <= best_score - relaxation.bound)
        result = solve_core(
            point,
            kept,
            lower=relaxation.bound,
            incumbent=best_score,
            seconds=deadline - time.perf_counter(),
            backend=backend,
        )
        if result.choice is not None and problem.score(result.choice) < best_score:
            best, best_score = result.choice, problem.score(result.choice)
        if not result.finished:
            proven_bound = min(proven_bound, result.bound)
    if best is None:
        if np.isfinite(proven_bound):
            raise InfeasibleError(
                f"no architecture was found within {max_seconds:g} s, and none ruled out",
                remedy="allow more time, or loosen the limits",
            )
        raise explain_infeasible(problem)
    bound = min(proven_bound, best_score)
    spec = problem.spec(best)
    gap = (best_score - bound) / abs(best_score) if best_score else 0.0
    return Solution(
        status="optimal" if gap <= _RELATIVE_GAP else "feasible",
        score=best_score,
        bound=bound,
        gap=gap,
        seconds=time.perf_counter() - begun,
        spec=spec,
        cost=best_operating_point(problem, spec),
        problem=problem,
    )


def best_operating_point(problem: Problem, spec: ArchitectureSpec) -> ScenarioCost:
    """The point of highest throughput at which the architecture keeps every limit."""
    limits = problem.limits
    fitting = [
        cost
        for index in range(len(problem.cost.points))
        if (cost := problem.cost.cost(spec, index)).memory_bytes <= cost.memory_limit_bytes
        and cost.ttft_ms <= (limits.ttft_ms or np.inf)
        and cost.tpot_ms <= (limits.tpot_ms or np.inf)
        and cost.latency_ms <= (limits.latency_ms or np.inf)
    ]
    return max(fitting, key=lambda cost: cost.tokens_per_second_per_gpu)


def _undominated(point: PointProblem) -> np.ndarray:
    """Choices that no other choice of the layer beats in damage and in every resource.

    Of equal choices the first is kept.
    """
    damage = point.damage
    # [layer, j, k]: k is no worse than j everywhere.
    no_worse = damage[:, None, :] <= damage[:, :, None]
    same = damage[:, None, :] == damage[:, :, None]
    for resource in point.usage:
        no_worse &= (resource[None, :] <= resource[:, None])[None]
        same &= (resource[None, :] == resource[:, None])[None]
    earlier = np.tri(damage.shape[1], k=-1, dtype=bool)
    beaten = no_worse & (~same | earlier)
    kept: np.ndarray = ~beaten.any(axis=2) & np.isfinite(damage)
    return kept
