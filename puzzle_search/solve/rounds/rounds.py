"""Beyond additive scores: measure the child, score replacements around it, solve again.

Scores are measured around the parent, one block replaced at a time; a child replaces many, and
damages do not quite add up. A round asks what each replacement does to the child at hand, solves
for the best change of a few layers, measures what comes out, and goes on from the best child
measured: a trust-region method whose linear model is measured, not derived.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from puzzle_search.arch import ArchitectureSpec, Replacement
from puzzle_search.choices import Backend
from puzzle_search.errors import InputError
from puzzle_search.solve.answers.pool import diverse
from puzzle_search.solve.problem.items import Floats
from puzzle_search.solve.problem.measures import Bound, item_measure
from puzzle_search.solve.problem.problem import Problem, Region
from puzzle_search.solve.search.relaxation import relax
from puzzle_search.solve.search.search import DEFAULT_BACKEND
from puzzle_search.solve.search.solution import Solution


class Judge(Protocol):
    """Measures real damage, in the metric of the problem's scores."""

    def measure(self, spec: ArchitectureSpec) -> float:
        """Damage of a child."""
        ...

    def around(
        self, spec: ArchitectureSpec, replacements: Sequence[Replacement]
    ) -> Mapping[Replacement, float]:
        """Damage of the child with one block replaced, for each replacement.

        Replacements name both variants, and begin and end where blocks of the child do.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Round:
    """What one round did; round 0 is the one-shot answer.

    Attributes:
        number: from 0.
        solution: the best child measured in this round. Its score and bound are sums of the
            scores that the problem came with: after round 0 it is not their optimum.
        estimate: its damage by the scores it was chosen with.
        measured: its real damage.
        scored: replacements scored around the child before.
        offered: replacements there were.
        children: children measured.
        seconds: time the round took.
    """

    number: int
    solution: Solution
    estimate: float
    measured: float
    scored: int
    offered: int
    children: int
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """The round's figures by name."""
        shown = {key: value for key, value in vars(self).items() if key != "solution"}
        error = self.estimate / self.measured - 1 if self.measured else None
        return shown | {"estimate_error": error}


def refine(
    problem: Problem,
    judge: Judge,
    *,
    rounds: int = 3,
    trust_layers: int = 4,
    children: int = 4,
    max_seconds: float = 60.0,
    backend: Backend = DEFAULT_BACKEND,
) -> Iterator[Round]:
    """Solve, then improve the answer by rounds; the least ``measured`` has the best child.

    Round 1 measures the next best answers of the problem as it stands; each later one re-scores
    around the best child so far, and is the last where it measures no better one.

    Args:
        problem: damages, costs and limits; its goal is the score.
        judge: measures real damage.
        rounds: at most.
        trust_layers: layers that a round may change; half as many, and so on to one, are tried
            too, and twice as many, and so on, only where all of these hold nothing better.
        children: to measure, of each such number of layers.
        max_seconds: of each search.
        backend: solver of the exact step; all give the same answer.

    Raises:
        InfeasibleError: no architecture keeps the limits.
        InputError: the problem has another goal than the score.
    """
    if problem.goal.name != "score":
        raise InputError(
            f"rounds lower the score, but the goal is {problem.goal.name}",
            remedy="leave out the goal, or the rounds",
        )
    started = time.perf_counter()
    first, *next_best = diverse(
        problem,
        solutions=1 + 2 * children if rounds else 1,
        min_distance=2,
        max_seconds=max_seconds,
        backend=backend,
    )
    best = _Child(solution=first, estimate=first.score, measured=judge.measure(first.spec))

    def done(number: int, tried: Sequence[_Child], scored: int = 0, offered: int = 0) -> Round:
        child = min(tried, key=lambda child: child.measured, default=best)
        return Round(
            number=number,
            solution=_in_terms_of(first, child.solution),
            estimate=child.estimate,
            measured=child.measured,
            scored=scored,
            offered=offered,
            children=len(tried),
            seconds=time.perf_counter() - started,
        )

    yield done(0, [best])
    if not rounds:
        return
    started = time.perf_counter()
    tried = [
        _Child(
            solution=replace(answer, problem=problem),  # without the distance that was asked
            estimate=answer.score,
            measured=judge.measure(answer.spec),
        )
        for answer in next_best
    ]
    yield done(1, tried)
    best = min([best, *tried], key=lambda child: child.measured)
    doubt = max(child.doubt for child in [best, *tried])
    for number in range(2, rounds + 1):
        started = time.perf_counter()
        around = _Neighbourhood.of(best.solution, doubt)
        found = judge.around(best.solution.spec, around.replacements)
        local = around.rescored([found[key] - best.measured for key in around.replacements])
        tried = []
        for layers in _trust_regions(trust_layers, problem.items.num_layers):
            if layers > trust_layers and any(child.measured < best.measured for child in tried):
                break
            known = {child.solution.selection.tobytes() for child in tried}
            for step in around.steps(local, layers, children, max_seconds, backend):
                if step.selection.tobytes() not in known:
                    measured, estimate = judge.measure(step.spec), best.measured + step.score
                    tried.append(_Child(solution=step, estimate=estimate, measured=measured))
        yield done(number, tried, len(around.replacements), int(around.changes.sum()))
        better = min([best, *tried], key=lambda child: child.measured)
        if better is best:
            return
        best, doubt = better, max(child.doubt for child in tried)


def _trust_regions(layers: int, all_layers: int) -> Iterator[int]:
    """So many layers, half as many, and so on to one; then twice as many, and so on to all."""
    smaller = layers
    while smaller:
        yield smaller
        smaller //= 2
    while layers < all_layers:
        layers = min(2 * layers, all_layers)
        yield layers


def best_round(rounds: Sequence[Round]) -> Round:
    """The one with the least damage measured."""
    return min(rounds, key=lambda done: done.measured)


def _in_terms_of(first: Solution, found: Solution) -> Solution:
    """A later child as an answer to the problem that the first one solves."""
    if found.selection is first.selection:
        return first
    objective = first.problem.score(found.selection)
    gap = (objective - first.bound) / (max(abs(objective), abs(first.bound)) or 1.0)
    return replace(
        found,
        problem=first.problem,
        status="feasible",
        objective=objective,
        bound=first.bound,
        gap=gap,
        prices=(),
    )


@dataclass(frozen=True, kw_only=True)
class _Child:
    solution: Solution
    estimate: float
    measured: float

    @property
    def doubt(self) -> float:
        return abs(self.measured - self.estimate)


@dataclass(frozen=True, kw_only=True)
class _Neighbourhood:
    """What may take the place of a child's blocks.

    Attributes:
        child: in the middle.
        own: (items,), the block of the child in which an item begins.
        changes: (items,), items that begin and end where blocks of the child do, but for its own.
        likely: (items,), those of them that could enter the answer.
    """

    child: Solution
    own: NDArray[np.intp]
    changes: NDArray[np.bool_]
    likely: NDArray[np.bool_]

    @classmethod
    def of(cls, child: Solution, doubt: float) -> _Neighbourhood:
        """The neighbourhood of a child whose estimate may be wrong by ``doubt``.

        Whoever has an item has at least the relaxation's bound and what the item forces above it.
        Where real damage exceeds the estimates, and the child's by ``doubt``, an item that forces
        more than the child's estimate and ``doubt`` cannot be in a better one.
        """
        problem, selection = child.problem, child.selection
        items = problem.items
        first, last = items.first[selection], items.last[selection]
        changes = np.isin(items.first, first) & np.isin(items.last, last)
        changes[selection] = False
        point = problem.at(Region(points=tuple((index,) for index in child.points)))
        relaxed = relax(point)
        most = child.score + doubt - relaxed.bound
        likely = changes & (relaxed.above <= most)
        own = np.searchsorted(first, items.first, side="right") - 1
        return cls(child=child, own=own, changes=changes, likely=likely)

    @property
    def replacements(self) -> list[Replacement]:
        """The likely items."""
        offered = self.child.problem.replacements
        return [offered[item] for item in np.flatnonzero(self.likely)]

    def rescored(self, damage: Sequence[float]) -> Problem:
        """The problem with damages as differences from the child, these of the likely items."""
        problem, selection = self.child.problem, self.child.selection
        items = problem.items
        before = np.append(0.0, np.cumsum(problem.damage[selection]))
        ends = np.searchsorted(items.last[selection], items.last)
        differences = problem.damage - (before[ends + 1] - before[self.own])
        differences[self.likely] = damage
        return problem.with_damage(differences)

    def steps(
        self,
        problem: Problem,
        trust_layers: int,
        children: int,
        max_seconds: float,
        backend: Backend,
    ) -> Iterator[Solution]:
        """The best changes of at most so many layers; of one layer, only those that help."""
        items, selection = problem.items, self.child.selection
        changed: Floats = 1.0 + (items.last - items.first).astype(np.float64)
        changed[~self.likely] = items.num_layers + 1.0
        changed[selection] = 0.0
        measure = item_measure("layers", changed, problem.attention, problem.ffn)
        bound = Bound(limit="layers changed", measure=measure, at_most=float(trust_layers))
        near = replace(problem, bounds=(*problem.bounds, bound))
        for step in diverse(
            near,
            solutions=1 + children,
            min_distance=1,
            max_seconds=max_seconds,
            backend=backend,
        ):
            own = step.selection.tobytes() == selection.tobytes()
            if not own and (step.score < 0 or trust_layers > 1):
                yield replace(step, problem=problem)
