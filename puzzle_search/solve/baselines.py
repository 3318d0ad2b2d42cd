"""What people do without a solver: greedy choices, one variant everywhere, chance."""

from __future__ import annotations

import numpy as np

from puzzle_search.arch import ArchitectureSpec
from puzzle_search.solve.problem import Problem
from puzzle_search.solve.relaxation import relax

_ATTEMPTS = 20  # for each random architecture asked


def _best(problem: Problem, choices: list[np.ndarray]) -> ArchitectureSpec | None:
    best = min(choices, key=lambda choice: problem.score(choice), default=None)
    return problem.spec(best) if best is not None else None


def greedy(problem: Problem) -> ArchitectureSpec | None:
    """From the parent, take the swap of least added damage per time saved until the limits hold.

    Puzzle's own baseline (arXiv 2411.19146, section 8.2.1) sorts blocks once; this one looks
    again after each swap. The best over all operating points; None if it never gets there.
    """
    found = []
    for index in range(len(problem.cost.points)):
        point = problem.at(index)
        layers = np.arange(problem.num_layers)
        choice = np.nanargmin(point.damage, axis=1)
        while not problem.holds(problem.spec(choice), index):
            load = point.usage.sum(axis=0)
            saved = load[choice][:, None] - load[None, :]
            added = point.damage - point.damage[layers, choice][:, None]
            with np.errstate(divide="ignore", invalid="ignore"):
                rate = np.where(saved > 0, added / saved, np.inf)
            layer, column = np.unravel_index(np.nanargmin(rate), rate.shape)
            if not np.isfinite(rate[layer, column]):
                break
            choice[layer] = column
        else:
            found.append(choice)
    return _best(problem, found)


def uniform(problem: Problem) -> ArchitectureSpec | None:
    """The one pair of variants that, in every layer, keeps the limits at least damage."""
    found = []
    for index in range(len(problem.cost.points)):
        for column in range(len(problem.pairs)):
            choice = np.full(problem.num_layers, column)
            if np.isfinite(problem.score(choice)) and problem.holds(problem.spec(choice), index):
                found.append(choice)
    return _best(problem, found)


def random_specs(
    problem: Problem, count: int, *, tolerance: float = 0.02, seed: int = 0
) -> list[ArchitectureSpec]:
    """Random architectures that keep the limits and use at least 1 - ``tolerance`` of the time.

    Starting from random choices, random swaps towards the limit are made at the last operating
    point (the largest batch) where the limits can be met at all. Fewer are returned where few of
    the attempts succeed.
    """
    rng = np.random.default_rng(seed)
    points = [(problem.at(index), index) for index in range(len(problem.cost.points))]
    reachable = [entry for entry in points if np.isfinite(relax(entry[0]).bound)]
    if not reachable:
        return []
    point, index = reachable[-1]
    allowed = [np.flatnonzero(np.isfinite(row)) for row in problem.damage]
    specs: list[ArchitectureSpec] = []
    for _ in range(count * _ATTEMPTS):
        if len(specs) == count:
            break
        choice = np.array([rng.choice(columns) for columns in allowed])
        for _ in range(50 * problem.num_layers):
            used = point.used(choice)
            tightest = (used / point.limits).max()
            if 1 - tolerance <= tightest <= 1:
                if problem.holds(problem.spec(choice), index):
                    specs.append(problem.spec(choice))
                break
            layer = rng.integers(len(choice))
            column = rng.choice(allowed[layer])
            resource = int((used / point.limits).argmax())
            change = point.usage[resource, column] - point.usage[resource, choice[layer]]
            if (change < 0) == (tightest > 1):
                choice[layer] = column
    return specs
