"""The trade-off between quality and one limit: the best answer at each of many values of it.

Values are solved from the most demanding on: an answer keeps every limit that asks for less, so
it starts the next search. Stretches of neighbouring values are independent and run in parallel.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace

import numpy as np

from puzzle_search.choices import Axis, Backend, check
from puzzle_search.errors import InputError
from puzzle_search.solve.answers.solver import solve
from puzzle_search.solve.problem.items import Selection
from puzzle_search.solve.problem.measures import scenario_measures
from puzzle_search.solve.problem.problem import Problem
from puzzle_search.solve.search.search import DEFAULT_BACKEND, search
from puzzle_search.solve.search.solution import Solution

# The limit that an axis sets, and the measure that it bounds.
_LIMITS = {
    "throughput": ("tokens_per_second_per_gpu", "us_per_token"),
    "memory": ("memory_bytes", "memory_bytes"),
    "latency": ("latency_ms", "latency_ms"),
}
_STRETCH = 8
# The ends are met with nothing to spare; the limits there ask this much less.
_TO_SPARE = 1e-9


@dataclass(frozen=True, kw_only=True)
class FrontierPoint:
    """The best answer at one value of the limit, in its own unit (tok/s/GPU, bytes or ms)."""

    limit: float
    solution: Solution


def frontier(
    problem: Problem,
    *,
    axis: Axis = "throughput",
    points: int = 200,
    lowest: float | None = None,
    highest: float | None = None,
    max_seconds_per_point: float = 10.0,
    backend: Backend = DEFAULT_BACKEND,
    workers: int | None = None,
    progress: Callable[[str], None] = lambda point: None,
) -> list[FrontierPoint]:
    """Solve for values of a limit of the first scenario, evenly from one end to the other.

    Args:
        problem: damages, costs and all other limits; its own limit on the axis is not used.
        axis: which limit.
        points: how many values.
        lowest: value to begin at; by default the one from which the limit no longer binds, or can
            no longer be kept.
        highest: value to end at.
        max_seconds_per_point: time limit; a point that reaches it is ``feasible`` with its gap.
        backend: solver of the exact step.
        workers: processes; by default one for each processor.
        progress: told of each point that is done.

    Returns:
        Points by rising value of the limit.

    Raises:
        InputError: fewer than two points, an unknown axis, or the ends are the wrong way round.
        InfeasibleError: the other limits alone, or an end that was asked for, cannot be kept.
    """
    check("axis", axis, Axis)
    if points < 2:
        raise InputError(f"{points} points make no frontier", remedy="ask for two or more")
    limits, device = problem.workloads[0].limits, problem.workloads[0].table.target
    if axis != "memory" and getattr(limits, _LIMITS[axis][0]) is not None:
        raise InputError(
            f"{axis} is both the axis and limited", remedy="give the ends of the axis instead"
        )
    if axis == "memory" and (highest or 0) > device.memory_limit_bytes:
        raise InputError(
            f"{device.gpu} has {device.memory_limit_bytes / 1e9:g} GB",
            remedy="end the axis there",
        )
    free = _with_limit(problem, axis, None)
    ends = sorted(_ends(free, axis))
    low = ends[0] if lowest is None else lowest
    high = ends[1] if highest is None else highest
    if not 0 < low <= high < np.inf:
        raise InputError(
            f"the frontier would go from {low:g} to {high:g}", remedy="swap or widen the ends"
        )
    values = np.linspace(low, high, points)
    demanding_first = values[::-1] if axis == "throughput" else values
    solve(_with_limit(problem, axis, float(demanding_first[0])), backend=backend)
    stretches = [demanding_first[i : i + _STRETCH].tolist() for i in range(0, points, _STRETCH)]
    found: list[FrontierPoint] = []
    with ProcessPoolExecutor(
        workers or os.cpu_count(),
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_Stretches.prepare,
        initargs=(free, axis, max_seconds_per_point, backend),
    ) as pool:
        for job in as_completed([pool.submit(_Stretches.solve, s) for s in stretches]):
            for value, solution in job.result():
                whole = replace(solution, problem=_with_limit(free, axis, value))
                found.append(FrontierPoint(limit=value, solution=whole))
                progress(f"{value:.5g}")
    return sorted(found, key=lambda point: point.limit)


def _with_limit(problem: Problem, axis: Axis, value: float | None) -> Problem:
    limit, _ = _LIMITS[axis]
    workload = problem.workloads[0]
    if axis == "memory":  # never beyond the device
        device = workload.table.target.memory_limit_bytes
        value = device if value is None else min(value, device)
    limits = replace(workload.limits, **{limit: value})
    return replace(problem, workloads=(replace(workload, limits=limits), *problem.workloads[1:]))


def _ends(free: Problem, axis: Axis) -> tuple[float, float]:
    """Where the limit stops to bind, and the most demanding value that can be kept."""
    _, name = _LIMITS[axis]
    measure = scenario_measures(free.workloads[0].table, 0)[name]
    unbound, extreme = solve(free), solve(replace(free, goal=measure))
    # Among the answers of least damage, the one that the axis likes best.
    loose = float(measure.of(free.items, unbound.selection)[unbound.points[0]])
    ends = loose * (1 + _TO_SPARE), extreme.objective * (1 + _TO_SPARE)
    return (1e6 / ends[0], 1e6 / ends[1]) if axis == "throughput" else ends


class _Stretches:
    """What a worker process solves; the problem is sent to it once."""

    _search: Callable[[float, list[Selection]], Solution | None]
    _nothing: Problem

    @classmethod
    def prepare(cls, free: Problem, axis: Axis, max_seconds: float, backend: Backend) -> None:
        """Keep the problem in the worker."""

        def search_at(value: float, start: list[Selection]) -> Solution | None:
            problem = _with_limit(free, axis, value)
            return search(problem, max_seconds=max_seconds, backend=backend, start=start)

        cls._search = staticmethod(search_at)
        cls._nothing = replace(free, workloads=())

    @classmethod
    def solve(cls, values: list[float]) -> list[tuple[float, Solution]]:
        """Solve neighbouring values; solutions come without their problem, which is large."""
        found: list[tuple[float, Solution]] = []
        for value in values:
            solution = cls._search(value, [found[-1][1].selection] if found else [])
            if solution is not None:
                found.append((value, replace(solution, problem=cls._nothing)))
        return found
