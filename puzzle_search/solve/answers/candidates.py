"""Children of different kinds for one question, of which distillation may heal another one best."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from puzzle_search.arch import ParentConfig
from puzzle_search.choices import Backend
from puzzle_search.solve.answers.pool import diverse, found_in_time
from puzzle_search.solve.problem.measures import Bound, item_measure
from puzzle_search.solve.problem.problem import Problem
from puzzle_search.solve.search.search import DEFAULT_BACKEND
from puzzle_search.solve.search.solution import Solution

_APART = 8  # further candidates differ from all others in one of so many layers


def candidates(
    problem: Problem,
    best: Solution,
    config: ParentConfig,
    count: int,
    *,
    max_seconds: float = 60.0,
    backend: Backend = DEFAULT_BACKEND,
) -> list[Solution]:
    """The best answer, then others that keep the same limits.

    Sums of damages do not know what distillation repairs: it repairs a few blocks that are gone
    more easily than many that are a little worse. So the answers with least damage follow where
    layers are kept or dropped whole, and where damage counts by its square root, which gathers it
    in fewer blocks; then the best that differ from all before.

    Args:
        problem: what was asked.
        best: the answer to it.
        config: the parent.
        count: how many answers; fewer are returned where no more exist.
        max_seconds: time limit of all searches together.
        backend: solver of the exact step.
    """
    each = max_seconds / count
    found = [best]
    for kind in _other_kinds(problem, config):
        other = found_in_time(kind, each, backend)
        if other is not None and len(found) < count and _is_new(other, found):
            found.append(_answer(other, problem, best.bound))
    return diverse(
        problem,
        solutions=count,
        min_distance=-(-config.num_layers // _APART),
        beside=found,
        max_seconds=each * (count - len(found)),
        backend=backend,
    )


def _other_kinds(problem: Problem, config: ParentConfig) -> Iterator[Problem]:
    """The problem where layers go whole, and with roots of the damages."""
    items = problem.items
    attention, ffn = (np.array(names) for names in (problem.attention, problem.ffn))
    pairs = list(zip(attention[items.attention], ffn[items.ffn], strict=True))
    whole = {(config.attention, config.ffn), ("no_op", "no_op")}
    parted = np.array([float(pair not in whole) for pair in pairs])
    measure = item_measure(
        "layers neither kept nor dropped", parted, problem.attention, problem.ffn
    )
    bound = Bound(limit="whole layers", measure=measure, at_most=0.0)
    yield replace(problem, bounds=(*problem.bounds, bound))
    yield problem.with_damage(np.sqrt(np.maximum(problem.damage, 0.0)))


def _is_new(solution: Solution, found: list[Solution]) -> bool:
    return all(solution.spec.blocks != other.spec.blocks for other in found)


def _answer(solution: Solution, problem: Problem, bound: float) -> Solution:
    """An answer to the problem of another kind, as one to the problem that was asked."""
    score = problem.score(solution.selection)
    return replace(
        solution,
        problem=problem,
        status="feasible",
        objective=score,
        bound=bound,
        gap=(score - bound) / score if score else 0.0,
        prices=(),
    )
