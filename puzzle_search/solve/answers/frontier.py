"""The trade-off between quality and one limit: the best answer at each of many values of it.

Values stand where people choose: evenly by damage, from the answer of least damage to where a
stated damage is reached. How far the limit goes within a damage is a search with the limit as goal.
Values are solved from the most demanding on: an answer keeps every limit that asks for less, so
it starts the next search. Stretches of neighbouring values are independent and run in parallel.
"""

from __future__ import annotations

import math
import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import cast

import numpy as np

from puzzle_search.choices import Axis, Backend, check
from puzzle_search.cost import Target
from puzzle_search.errors import InputError
from puzzle_search.solve.answers.solver import solve
from puzzle_search.solve.problem.items import Selection
from puzzle_search.solve.problem.measures import Bound, Measure, item_measure, scenario_measures
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
# The summed damage at which a frontier ends unless asked otherwise, nats for KL. A choice: children
# that people publish lie well below it, and the more is cut, the less a sum of scores says.
END_SCORE = 0.5
# The ends are met with nothing to spare; the limits there ask this much less.
_TO_SPARE = 1e-9


@dataclass(frozen=True, kw_only=True)
class End:
    """An end of a frontier by what its child must reach there.

    Attributes:
        limit: an axis, or the name of a limit of the child itself.
        value: of the limit, in its own unit.
        measure: what the limit of the child bounds; None for an axis.
    """

    limit: str
    value: float
    measure: Measure | None = None


@dataclass(frozen=True, kw_only=True)
class FrontierPoint:
    """The best answer at one value of the limit, in its own unit (tok/s/GPU, bytes or ms)."""

    limit: float
    solution: Solution


def frontier(
    problem: Problem,
    *,
    axis: Axis = "throughput",
    points: int = 50,
    start: End | None = None,
    end: End | None = None,
    max_seconds_per_point: float = 10.0,
    backend: Backend = DEFAULT_BACKEND,
    workers: int | None = None,
    progress: Callable[[str], None] = lambda point: None,
) -> list[FrontierPoint]:
    """Solve for values of a limit of the first scenario, evenly by damage from end to end.

    Args:
        problem: damages, costs and all other limits, for the least score; its own limit on the
            axis is not used.
        axis: which limit.
        points: how many values, at most: damages between which no answer lies share one.
        start: where to begin; by default at the answer of least damage, where the limit does not
            bind. An end on the axis stands at that value; any other at the least damage at which
            its value can be reached.
        end: where to end; by default at a score of `END_SCORE`, or where the limit can be taken no
            further if that comes first, or all answers are beyond that score.
        max_seconds_per_point: time limit; a point that reaches it is ``feasible`` with its gap.
        backend: solver of the exact step.
        workers: processes; by default one for each processor.
        progress: told of each point that is done.

    Returns:
        Points by rising value of the limit.

    Raises:
        InputError: fewer than two points, an unknown axis, or an end that is no number or beyond
            the device.
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
    for given in (start, end):
        if given is not None:
            _check_end(given, device)
    free = _with_limit(problem, axis, None)
    start_place = _start(free, axis) if start is None else _place(free, axis, start)
    until = END_SCORE if start_place.score < END_SCORE else math.inf
    end_place = _place(free, axis, end or End(limit="score", value=until))
    first, last = sorted((start_place, end_place), key=lambda place: place.score)
    between = np.linspace(first.score, last.score, points)[1:-1]
    demanding_first = [last, *(_Place(score=float(s)) for s in between[::-1]), first]
    stretches = [demanding_first[i : i + _STRETCH] for i in range(0, points, _STRETCH)]
    found: dict[float, Solution] = {}
    setting = (free, axis, max_seconds_per_point, backend)
    for value, solution in _solved(stretches, setting, workers or os.cpu_count() or 1):
        found[value] = replace(solution, problem=_with_limit(free, axis, value))
        progress(f"{value:.5g}")
    values = sorted(found)
    apart = [a for a, b in pairwise([*values, np.inf]) if not math.isclose(a, b, rel_tol=_TO_SPARE)]
    return [FrontierPoint(limit=value, solution=found[value]) for value in apart]


@dataclass(frozen=True, kw_only=True)
class _Place:
    """Where a point shall be: at a damage; the ends have their limit already."""

    score: float
    limit: float | None = None


def _solved(
    stretches: list[list[_Place]], setting: tuple[Problem, Axis, float, Backend], workers: int
) -> Iterator[tuple[float, Solution]]:
    """Limits with their answers, as they come."""
    if min(workers, len(stretches)) == 1:  # a process of its own would cost more than it saves
        _Stretches.prepare(*setting)
        for stretch in stretches:
            yield from _Stretches.solve(stretch)
        return
    with ProcessPoolExecutor(
        workers,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_Stretches.prepare,
        initargs=setting,
    ) as pool:
        for job in as_completed([pool.submit(_Stretches.solve, s) for s in stretches]):
            yield from job.result()


def _check_end(end: End, device: Target) -> None:
    if math.isnan(end.value) or (end.limit != "score" and not 0 < end.value < math.inf):
        raise InputError(
            f"{end.limit} of {end.value:g} is no end of a frontier",
            remedy="give a positive, finite one",
        )
    if end.limit == "memory" and end.value > device.memory_limit_bytes:
        raise InputError(
            f"{device.gpu} has {device.memory_limit_bytes / 1e9:g} GB", remedy="end the axis there"
        )


def _start(free: Problem, axis: Axis) -> _Place:
    """The answer of least damage; of several, the one that the axis likes best."""
    unbound = solve(free)
    loose = _axis_measure(free, axis).of(free.items, unbound.selection)[unbound.points[0]]
    return _Place(score=unbound.score, limit=_limit(float(loose), axis))


def _place(free: Problem, axis: Axis, end: End) -> _Place:
    """The limit of an end, and the least damage there."""
    limit = end.value
    if end.limit != axis:
        within = _within(free, axis, _least_damage(free, end))
        limit = _limit(solve(within).objective, axis)
    return _Place(score=solve(_with_limit(free, axis, limit)).score, limit=limit)


def _least_damage(free: Problem, end: End) -> float:
    """At which the value of an end can be reached."""
    if end.limit == "score":
        return end.value
    if end.measure is None:
        return solve(_with_limit(free, cast(Axis, end.limit), end.value)).score
    bound = Bound(limit=end.limit, measure=end.measure, at_most=end.value)
    return solve(replace(free, bounds=(*free.bounds, bound))).score


def _within(free: Problem, axis: Axis, score: float) -> Problem:
    """The problem of taking the axis as far as it goes within a damage, which may be infinite."""
    goal = _axis_measure(free, axis)
    if math.isinf(score):
        return replace(free, goal=goal)
    measure = item_measure("score", free.damage, free.attention, free.ffn)
    bound = Bound(limit="score", measure=measure, at_most=score)
    return replace(free, bounds=(*free.bounds, bound), goal=goal)


def _axis_measure(free: Problem, axis: Axis) -> Measure:
    return scenario_measures(free.workloads[0].table, 0)[_LIMITS[axis][1]]


def _limit(measured: float, axis: Axis) -> float:
    """A limit that an answer with this measure keeps."""
    at_most = measured * (1 + _TO_SPARE)
    return 1e6 / at_most if axis == "throughput" else at_most


def _with_limit(problem: Problem, axis: Axis, value: float | None) -> Problem:
    limit, _ = _LIMITS[axis]
    workload = problem.workloads[0]
    if axis == "memory":  # never beyond the device
        device = workload.table.target.memory_limit_bytes / (1 + workload.margin)
        value = device if value is None else min(value, device)
    limits = replace(workload.limits, **{limit: value})
    return replace(problem, workloads=(replace(workload, limits=limits), *problem.workloads[1:]))


class _Stretches:
    """What a worker process solves; the problem is sent to it once."""

    _free: Problem
    _axis: Axis
    _search: Callable[[Problem, list[Selection]], Solution | None]

    @classmethod
    def prepare(cls, free: Problem, axis: Axis, max_seconds: float, backend: Backend) -> None:
        """Keep the problem in the worker."""

        def search_from(problem: Problem, start: list[Selection]) -> Solution | None:
            return search(problem, max_seconds=max_seconds, backend=backend, start=start)

        cls._free, cls._axis, cls._search = free, axis, staticmethod(search_from)

    @classmethod
    def solve(cls, places: list[_Place]) -> list[tuple[float, Solution]]:
        """Solve neighbouring places; solutions come without their problem, which is large."""
        found: list[tuple[float, Solution]] = []
        nothing = replace(cls._free, workloads=())
        for place in places:
            start = [found[-1][1].selection] if found else []
            limit = place.limit
            if limit is None:
                furthest = cls._search(_within(cls._free, cls._axis, place.score), [])
                if furthest is None:
                    continue
                limit = _limit(furthest.objective, cls._axis)
                start.append(furthest.selection)
            solution = cls._search(_with_limit(cls._free, cls._axis, limit), start)
            if solution is not None:
                found.append((limit, replace(solution, problem=nothing)))
        return found
