"""What people do without a solver: greedy choices, one variant everywhere, chance."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from puzzle_search.arch import ArchitectureSpec
from puzzle_search.solve.problem.items import Selection
from puzzle_search.solve.problem.point import PointProblem
from puzzle_search.solve.problem.problem import Problem, Region
from puzzle_search.solve.search.relaxation import relax

_ATTEMPTS = 20  # for each random architecture asked


def _points(problem: Problem) -> Iterator[Region]:
    """Every operating point by itself; of several scenarios, the first ones vary slowest."""
    regions = problem.regions()
    while regions:
        region = regions.pop()
        if region.is_single:
            yield region
        else:
            regions += reversed(region.halves())


def _holds(problem: Problem, selection: Selection, region: Region) -> bool:
    return problem.holds(selection, [indices[0] for indices in region.points])


def _best(problem: Problem, selections: list[Selection]) -> ArchitectureSpec | None:
    best = min(selections, key=problem.score, default=None)
    return problem.spec(best) if best is not None else None


def greedy(problem: Problem) -> ArchitectureSpec | None:
    """From the parent, take the swap of least added damage per time saved until the limits hold.

    Puzzle's own baseline (arXiv 2411.19146, section 8.2.1) sorts blocks once; this one looks
    again after each swap. The best over all operating points; None if it never gets there.
    """
    found = []
    for region in _points(problem):
        point = problem.at(region)
        selection = point.items.cheapest(problem.damage)
        while not _holds(problem, selection, region):
            swap = _best_swap(problem, point, selection)
            if swap is None:
                break
            selection[swap[0]] = swap[1]
        else:
            found.append(selection)
    return _best(problem, found)


def _best_swap(
    problem: Problem, point: PointProblem, selection: Selection
) -> tuple[int, int] | None:
    """Place in the selection and item of least added damage per limits freed, if any frees."""
    load = point.usage.sum(axis=0)
    place = np.searchsorted(point.items.first[selection], point.items.first)
    saved = load[selection][place] - load
    added = problem.damage - problem.damage[selection][place]
    rate = np.where(saved > 0, added / np.where(saved > 0, saved, 1.0), np.inf)
    item = int(rate.argmin())
    return (int(place[item]), item) if np.isfinite(rate[item]) else None


def uniform(problem: Problem) -> ArchitectureSpec | None:
    """The one pair of variants that, in every layer, keeps the limits at least damage."""
    items = problem.items
    pairs = items.attention * len(problem.ffn) + items.ffn
    found = []
    for pair in np.unique(pairs):
        (selection,) = np.nonzero((pairs == pair) & (items.first == items.last))
        everywhere = len(selection) == items.num_layers
        if everywhere and problem.operating_points(selection) is not None:
            found.append(selection)
    return _best(problem, found)


def random_specs(
    problem: Problem, count: int, *, tolerance: float = 0.02, seed: int = 0
) -> list[ArchitectureSpec]:
    """Random architectures that keep the limits and use at least 1 - ``tolerance`` of one.

    Starting from random choices, random swaps towards the limit are made at the last operating
    point (the largest batch) where the limits can be met at all. Fewer are returned where few of
    the attempts succeed.
    """
    rng = np.random.default_rng(seed)
    reachable = [r for r in _points(problem) if np.isfinite(relax(problem.at(r)).bound)]
    if not reachable:
        return []
    region = reachable[-1]
    point = problem.at(region)
    items = point.items
    offered = [
        np.flatnonzero((items.first == layer) & (items.last == layer))
        for layer in range(items.num_layers)
    ]
    specs: list[ArchitectureSpec] = []
    for _ in range(count * _ATTEMPTS):
        if len(specs) == count:
            break
        selection = np.array([rng.choice(columns) for columns in offered])
        for _ in range(50 * items.num_layers):
            used = point.used(selection) / point.limits
            if 1 - tolerance <= used.max() <= 1:
                if _holds(problem, selection, region):
                    specs.append(problem.spec(selection))
                break
            layer = rng.integers(items.num_layers)
            item = rng.choice(offered[layer])
            resource = int(used.argmax())
            change = point.usage[resource, item] - point.usage[resource, selection[layer]]
            if (change < 0) == (used.max() > 1):
                selection[layer] = item
    return specs
