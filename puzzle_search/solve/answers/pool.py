"""Several good answers that differ from each other."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from puzzle_search.choices import Backend
from puzzle_search.errors import InfeasibleError, InputError
from puzzle_search.solve.answers.solver import solve
from puzzle_search.solve.problem.measures import Bound, item_measure
from puzzle_search.solve.problem.problem import Problem
from puzzle_search.solve.search.search import DEFAULT_BACKEND, search
from puzzle_search.solve.search.solution import Solution


def diverse(
    problem: Problem,
    *,
    solutions: int,
    min_distance: int,
    beside: Sequence[Solution] = (),
    max_seconds: float = 60.0,
    backend: Backend = DEFAULT_BACKEND,
) -> list[Solution]:
    """The best answer, then each time the best that differs from all before.

    Args:
        problem: damages, costs and limits.
        solutions: how many answers; fewer are returned where no more exist.
        min_distance: layers in which any two differ, at least.
        beside: answers that are there already and count among them.
        max_seconds: time limit of all searches together.
        backend: solver of the exact step.

    Returns:
        Answers from best to worst; proofs are of the best answer that differs from those before.

    Raises:
        InputError: no positive number of answers or layers.
        InfeasibleError: no architecture keeps the limits.
    """
    if solutions < 1 or min_distance < 1:
        raise InputError(
            f"{solutions} solutions at distance {min_distance}",
            remedy="ask for at least one solution, at a distance of at least one layer",
        )
    deadline = time.perf_counter() + max_seconds
    found = list(beside) or [solve(problem, max_seconds=max_seconds, backend=backend)]
    new = found
    while len(found) < solutions:
        unlike = (_differs(problem, solution, min_distance) for solution in new)
        problem = replace(problem, bounds=(*problem.bounds, *unlike))
        another = found_in_time(problem, max(0.0, deadline - time.perf_counter()), backend)
        if another is None:
            break
        found.append(another)
        new = [another]
    return found


def found_in_time(problem: Problem, max_seconds: float, backend: Backend) -> Solution | None:
    """The best architecture within the limits, None where there is none or time ends before."""
    try:
        return search(problem, max_seconds=max_seconds, backend=backend)
    except InfeasibleError:
        return None


def _differs(problem: Problem, solution: Solution, min_distance: int) -> Bound:
    """At most so many layers as in a solution."""
    items = problem.items
    same = np.zeros(len(items))
    same[solution.selection] = (
        1.0 + items.last[solution.selection] - items.first[solution.selection]
    )
    return Bound(
        limit=f"layers unlike answer {solution.objective:.5g}",
        measure=item_measure("layers", same, problem.attention, problem.ffn),
        at_most=float(items.num_layers - min_distance),
    )
