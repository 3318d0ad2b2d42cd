"""Search, and say what is reachable where nothing keeps the limits."""

from __future__ import annotations

from puzzle_search.choices import Backend
from puzzle_search.solve.answers.diagnosis import explain_infeasible
from puzzle_search.solve.problem.problem import Problem
from puzzle_search.solve.search.search import DEFAULT_BACKEND, search
from puzzle_search.solve.search.solution import Solution


def solve(
    problem: Problem, *, max_seconds: float = 60.0, backend: Backend = DEFAULT_BACKEND
) -> Solution:
    """Find the best architecture within the limits, or say what is reachable.

    Args:
        problem: damages, costs and limits.
        max_seconds: time limit; when it ends the search the status is ``feasible``.
        backend: solver of the exact step; all give the same answer.

    Raises:
        InfeasibleError: no architecture keeps the limits, or none was found in time.
    """
    solution = search(problem, max_seconds=max_seconds, backend=backend)
    if solution is None:
        raise explain_infeasible(problem)
    return solution
