"""The best architecture over all operating points, with its proof.

For each operating point the relaxation gives a lower bound and prices. Points are then closed in
order of their bounds, until one's bound reaches the best answer so far, since no later one can
hold a better answer. A point's selections are repaired into an answer; choices whose reduced cost
exceeds the distance between bound and best answer cannot be part of a better one and are fixed
away (Ingargiola and Korsh 1975), dominated choices too, and an exact solver settles what is left,
the most promising part of it first (a core, as in Pisinger 1995).
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from puzzle_search.arch import (
    ArchitectureSpec,
    architecture_parameters,
    kv_values_per_token,
)
from puzzle_search.cost import ScenarioCost
from puzzle_search.errors import InfeasibleError
from puzzle_search.solve.diagnosis import explain_infeasible
from puzzle_search.solve.exact import Backend, CoreResult, solve_core
from puzzle_search.solve.local_search import feasible_answer
from puzzle_search.solve.problem import Choice, PointProblem, Problem
from puzzle_search.solve.relaxation import Relaxation, relax

Status = Literal["optimal", "feasible"]

# Scores closer than this fraction are equal: their own standard errors are far larger.
_RELATIVE_GAP = 1e-9
# The exact step first looks among choices within this share of the distance between bound and
# answer: few, and mostly enough to find the best answer, which then rules out most of the rest.
_CORE_SHARE = 0.15
# By how much the limits are tightened, in turn, where an answer passes one by a tolerance.
_MARGINS = (1e-9, 1e-8, 1e-7, 1e-6, 1e-5)

DEFAULT_BACKEND: Backend = "scip"


@dataclass(frozen=True, kw_only=True)
class Solution:
    """The answer and its proof.

    Attributes:
        status: ``optimal`` if proven over all operating points, else ``feasible``.
        score: summed damage of the architecture.
        bound: no architecture that keeps the limits has less damage.
        gap: (score - bound) / score, 0 when proven (to 1e-9); where damages are negative, in
            units of the larger magnitude.
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
    open_points: list[tuple[Relaxation, PointProblem, int]] = []
    for index in range(len(problem.cost.points)):
        point = problem.at(index)
        relaxation = relax(point)
        if np.isfinite(relaxation.bound):
            open_points.append((relaxation, point, index))

    proven_bound = np.inf
    for relaxation, point, index in sorted(open_points, key=lambda entry: entry[0].bound):
        late = time.perf_counter() > deadline
        if best is not None and (
            late or relaxation.bound >= best_score - _RELATIVE_GAP * abs(best_score)
        ):
            # No later point has a lower bound.
            proven_bound = min(proven_bound, relaxation.bound)
            break
        answer = _first_answer(problem, index, point, relaxation)
        if answer is not None and problem.score(answer) < best_score:
            best, best_score = answer, problem.score(answer)
        if late:
            proven_bound = min(proven_bound, relaxation.bound)
            continue
        undominated, bound = _undominated(point), relaxation.bound
        for share in (_CORE_SHARE, 1.0):
            kept = undominated & (relaxation.reduced <= share * (best_score - bound))
            if share < 1 and kept.sum() == undominated.sum():
                continue
            result = _settle(
                problem,
                index,
                point,
                kept,
                lower=bound,
                incumbent=best_score,
                deadline=deadline,
                backend=backend,
            )
            if result.choice is not None and problem.score(result.choice) < best_score:
                best, best_score = result.choice, problem.score(result.choice)
        proven_bound = min(proven_bound, result.bound)
    if best is None:
        if np.isfinite(proven_bound):
            raise InfeasibleError(
                f"no architecture was found within {max_seconds:g} s, and none ruled out",
                remedy="allow more time, or loosen the limits",
            )
        raise explain_infeasible(problem)
    spec = problem.spec(best)
    optimal = proven_bound >= best_score - _RELATIVE_GAP * abs(best_score)
    bound = best_score if optimal else proven_bound
    return Solution(
        status="optimal" if optimal else "feasible",
        score=best_score,
        bound=bound,
        gap=0.0 if optimal else (best_score - bound) / max(abs(best_score), abs(bound)),
        seconds=time.perf_counter() - begun,
        spec=spec,
        cost=best_operating_point(problem, spec),
        problem=problem,
    )


def best_operating_point(problem: Problem, spec: ArchitectureSpec) -> ScenarioCost:
    """The point of highest throughput at which the architecture keeps every limit."""
    fitting = [
        problem.cost.cost(spec, index)
        for index in range(len(problem.cost.points))
        if problem.holds(spec, index)
    ]
    return max(fitting, key=lambda cost: cost.tokens_per_second_per_gpu)


def _first_answer(
    problem: Problem, index: int, point: PointProblem, relaxation: Relaxation
) -> Choice | None:
    """A good answer without the exact step, if one is found that keeps the limits."""
    for margin in (0.0, _MARGINS[0]):
        answer = feasible_answer(point.tightened(margin), relaxation)
        if answer is None or problem.holds(problem.spec(answer), index):
            return answer
    return None


def _settle(
    problem: Problem,
    index: int,
    point: PointProblem,
    kept: NDArray[np.bool_],
    *,
    lower: float,
    incumbent: float,
    deadline: float,
    backend: Backend,
) -> CoreResult:
    """The exact step, until its answer keeps the limits in floating point too.

    Solvers let limits pass by a tolerance. Where an answer does, the limits are tightened and the
    step is taken again; the bound stays that of the first, wider limits.
    """
    bound: float | None = None
    for margin in (0.0, *_MARGINS):
        result = solve_core(
            point.tightened(margin),
            kept,
            lower=lower,
            incumbent=incumbent,
            seconds=deadline - time.perf_counter(),
            backend=backend,
        )
        bound = result.bound if bound is None else bound
        if result.choice is None or problem.holds(problem.spec(result.choice), index):
            return CoreResult(choice=result.choice, bound=bound)
    assert bound is not None
    return CoreResult(choice=None, bound=bound)


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
