"""The best architecture over all operating points, with its proof.

Branch and bound over operating points: a region of batch sizes (of every scenario, at one TP
degree) allows no more than each of its points does, if every variant is charged the least part of
each limit that it takes at any of them. The relaxation of such a region gives a lower bound.
Regions are halved in order of their bounds until one's bound reaches the best answer so far; no
later one can hold a better answer, so most batch sizes are never looked at by themselves.

At a single operating point the relaxation's selections are repaired into an answer; items that
force more than the distance between bound and best answer cannot be part of a better one and are
fixed away (Ingargiola and Korsh 1975), dominated items too, and an exact solver settles what is
left, the most promising part of it first (a core, as in Pisinger 1995).
"""

from __future__ import annotations

import heapq
import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from puzzle_search.choices import Backend, check
from puzzle_search.errors import InfeasibleError, InputError
from puzzle_search.solve.problem.items import Selection
from puzzle_search.solve.problem.point import PointProblem
from puzzle_search.solve.problem.problem import Problem, Region
from puzzle_search.solve.search.exact.core import CoreResult, solve_core
from puzzle_search.solve.search.local_search import feasible_answer
from puzzle_search.solve.search.relaxation import Relaxation, relax
from puzzle_search.solve.search.solution import Solution

# Objectives closer than this fraction are equal: scores' own standard errors are far larger.
_RELATIVE_GAP = 1e-9
# Where objectives are near zero beside what they are sums of, this part of that is rounding.
_SPREAD_GAP = 1e-13
# The exact step first looks among items within this share of the distance between bound and
# answer: few, and mostly enough to find the best answer, which then rules out most of the rest.
_CORE_SHARE = 0.15
# How many answers that pass a limit by a tolerance are forbidden before limits are tightened.
_FORBIDDEN = 4
# By how much the limits are tightened, in turn, where an answer passes one by a tolerance.
_MARGINS = (1e-9, 1e-8, 1e-7, 1e-6, 1e-5)

_LONGEST_SECONDS = 1e6

DEFAULT_BACKEND: Backend = "scip"


def search(
    problem: Problem,
    *,
    max_seconds: float = 60.0,
    backend: Backend = DEFAULT_BACKEND,
    start: Sequence[Selection] = (),
) -> Solution | None:
    """Find the architecture with the least of the goal's measure, over all operating points.

    None if no architecture keeps the limits.

    Args:
        problem: damages, costs and limits.
        max_seconds: time limit; when it ends the search the status is ``feasible``.
        backend: solver of the exact step; all give the same answer.
        start: selections that may keep the limits; a good one shortens the search.

    Raises:
        InputError: the time limit is no positive number, or the back end is not known.
        InfeasibleError: none was found in time, but none ruled out either.
    """
    check("back end", backend, Backend)
    if not max_seconds >= 0:
        raise InputError(f"{max_seconds} seconds", remedy="give a time limit from 0 up")
    max_seconds = min(max_seconds, _LONGEST_SECONDS)
    begun = time.perf_counter()
    searching = _Search(problem, backend=backend, deadline=begun + max_seconds)
    for selection in start:
        searching.offer(selection)
    proven = searching.run()
    best = searching.best
    if best is None:
        if not np.isfinite(proven):
            return None
        late = f"within {max_seconds:g} s" if time.perf_counter() > begun + max_seconds else ""
        raise InfeasibleError(
            f"no architecture was found {late}, and none ruled out",
            remedy="allow more time, or loosen the limits a little",
        )
    optimal = proven >= best.objective - searching.tolerance
    bound = best.objective if optimal else proven
    return Solution(
        problem=problem,
        selection=best.selection,
        points=best.points,
        status="optimal" if optimal else "feasible",
        objective=best.objective,
        bound=bound,
        gap=0.0 if optimal else (best.objective - bound) / max(abs(best.objective), abs(bound)),
        prices=best.prices,
        seconds=time.perf_counter() - begun,
    )


@dataclass(frozen=True, kw_only=True)
class _Answer:
    selection: Selection
    points: tuple[int, ...]
    objective: float
    prices: tuple[float, ...]


class _Search:
    """The best answer so far, and how to better it."""

    def __init__(self, problem: Problem, *, backend: Backend, deadline: float) -> None:
        self.problem = problem
        self.best: _Answer | None = None
        self._backend: Backend = backend
        self._deadline = deadline

    @property
    def objective(self) -> float:
        """Of the best answer; infinite without one."""
        return np.inf if self.best is None else self.best.objective

    @property
    def tolerance(self) -> float:
        """Objectives this close are equal."""
        if self.best is None:
            return 0.0
        return _RELATIVE_GAP * abs(self.best.objective) + _SPREAD_GAP * self._spread

    @cached_property
    def _spread(self) -> float:
        """How much objectives can differ, by what its items' damages or sizes are made of."""
        goal = self.problem.goal
        parts = [p for p in (goal.attention, goal.ffn, goal.items) if p is not None]
        return self.problem.items.num_layers * sum(float(np.abs(p).max(initial=0)) for p in parts)

    def offer(self, selection: Selection, prices: tuple[float, ...] = ()) -> None:
        """Take a selection if it keeps the limits somewhere and is the best so far."""
        points = self.problem.operating_points(selection)
        if points is None:
            return
        goal = self.problem.goal
        at = 0 if goal.scenario is None else points[goal.scenario]
        objective = float(goal.of(self.problem.items, selection)[at])
        if objective < self.objective:
            self.best = _Answer(
                selection=selection,
                points=points,
                objective=objective,
                prices=prices,
            )

    def run(self) -> float:
        """Search until nothing better is left or time is over; returns a lower bound."""
        number = itertools.count()
        heap: list[tuple[float, int, Region, PointProblem, Relaxation]] = []

        def push(region: Region, start: Sequence[Selection] = ()) -> None:
            point = self.problem.at(region)
            relaxation = relax(point, start)
            if relaxation.bound < self.objective:
                heapq.heappush(heap, (relaxation.bound, next(number), region, point, relaxation))

        for region in self.problem.regions():
            push(region)
        proven = np.inf
        while heap:
            bound, _, region, point, relaxation = heapq.heappop(heap)
            if self.best is None:
                self._dive(region, relaxation)
            if self._late or bound >= self.objective - self.tolerance:
                # No later region has a lower bound.
                return min(proven, bound)
            if not region.is_single:
                for half in region.halves():
                    push(half, relaxation.selections)
                continue
            points = tuple(indices[0] for indices in region.points)
            self._first_answer(points, point, relaxation)
            proven = min(proven, self._settle(points, point, relaxation))
        return min(proven, self.objective)

    @property
    def _late(self) -> bool:
        return time.perf_counter() > self._deadline

    def _dive(self, region: Region, relaxation: Relaxation) -> None:
        """Look for any answer at a point within a region, halving towards the better bound."""
        while not region.is_single:
            halves = [(half, relax(self.problem.at(half), relaxation.selections))
                      for half in region.halves()]  # fmt: skip
            region, relaxation = min(halves, key=lambda entry: entry[1].bound)
        if region.is_single and np.isfinite(relaxation.bound):
            points = tuple(indices[0] for indices in region.points)
            self._first_answer(points, self.problem.at(region), relaxation)

    def _first_answer(
        self, points: tuple[int, ...], point: PointProblem, relaxation: Relaxation
    ) -> None:
        """Offer a good answer without the exact step, if one is found that keeps the limits."""
        for margin in (0.0, _MARGINS[0]):
            answer = feasible_answer(point.tightened(margin), relaxation)
            if answer is None:
                return
            if self.problem.holds(answer, points):
                self.offer(answer, self.problem.per_unit(relaxation.prices, points))
                return

    def _settle(
        self, points: tuple[int, ...], point: PointProblem, relaxation: Relaxation
    ) -> float:
        """Find the best answer of an operating point; returns a lower bound of it."""
        bound = relaxation.bound
        for share in (_CORE_SHARE, 1.0):
            possible = relaxation.above <= self.objective - bound
            kept = relaxation.above <= share * (self.objective - bound)
            if share < 1 and kept.sum() == possible.sum():
                continue
            result = self._exact(points, point, _undominated(point, kept), bound)
            if result.selection is not None:
                prices = self.problem.per_unit(relaxation.prices, points)
                self.offer(result.selection, prices)
        return result.bound

    def _exact(
        self, points: tuple[int, ...], point: PointProblem, kept: NDArray[np.bool_], lower: float
    ) -> CoreResult:
        """The exact step, until its answer keeps the limits in floating point too.

        Solvers let limits pass by a tolerance. An answer that does is forbidden and the step taken
        again; where that happens too often the limits are tightened instead, and the bound stays
        that of the wider ones.
        """
        bound = lower
        for margin in (*(0.0,) * _FORBIDDEN, *_MARGINS):
            result = solve_core(
                point.tightened(margin),
                kept,
                lower=lower,
                incumbent=self.objective,
                seconds=self._deadline - time.perf_counter(),
                backend=self._backend,
            )
            bound = bound if margin else result.bound
            if result.selection is None or self.problem.holds(result.selection, points):
                return CoreResult(selection=result.selection, bound=bound)
            if not margin:
                point = point.without(result.selection)
        return CoreResult(selection=None, bound=bound)


def _undominated(point: PointProblem, kept: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Kept items that no other kept item for the same layers beats in everything.

    Of equal items the first is kept.
    """
    amounts = np.vstack([point.objective, point.usage])
    (candidates,) = np.nonzero(kept)
    runs = point.items.run_of[candidates]
    undominated = np.zeros(len(kept), dtype=bool)
    for group in np.split(candidates, np.flatnonzero(np.diff(runs)) + 1):
        mine = amounts[:, group]
        # [j, k]: k is no worse than j everywhere.
        no_worse = (mine[:, None, :] <= mine[:, :, None]).all(axis=0)
        same = no_worse & no_worse.T
        beaten = (no_worse & (~same | np.tri(len(group), k=-1, dtype=bool))).any(axis=1)
        undominated[group[~beaten]] = True
    return undominated
