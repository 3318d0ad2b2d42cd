"""Several answers: as far apart as asked, none better left out."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from puzzle_search.arch import ArchitectureSpec, SearchSpace
from puzzle_search.cost import OperatingPoint
from puzzle_search.errors import InputError
from puzzle_search.solve import Limits, Problem, Workload, formulate
from puzzle_search.solve.answers.pool import diverse
from tests.solve.helpers import price_all, random_scores, table_of, tiny_config


def problem(seed: int) -> tuple[Problem, np.ndarray, list[tuple[int, ...]]]:
    """A problem, and damage of every architecture that keeps its limits."""
    config = tiny_config(4)
    space = SearchSpace.uniform(config, attention=["gqa_4", "gqa_1"], ffn=["mlp_64", "mlp_16"])
    scores = random_scores(config, space, np.random.default_rng(seed))
    table = table_of(config, space, [OperatingPoint(batch=4, tp=1)], seed=seed)
    priced = price_all(config, space, scores, table)
    # Apart from any architecture's own throughput, which is summed in another order here.
    target = float(np.quantile(priced.throughput, 0.4)) * (1 + 1e-7)
    limits = Limits(tokens_per_second_per_gpu=target)
    keep = priced.allowed(limits, 10**12).any(axis=0)
    choices = np.array(list(itertools.product(range(4), repeat=4)))
    found = formulate(config, space, scores, [Workload.on_device(table, limits)])
    return found, priced.damage[keep], [tuple(row) for row in choices[keep].tolist()]


def distance(first: ArchitectureSpec, second: ArchitectureSpec) -> int:
    return sum(a != b for a, b in zip(first.blocks, second.blocks, strict=True))


@pytest.mark.parametrize("min_distance", [1, 2, 3])
@pytest.mark.parametrize("seed", range(3))
def test_the_pool_is_the_greedy_one_by_enumeration(seed: int, min_distance: int) -> None:
    asked, damage, choices = problem(seed)
    expected: list[float] = []
    chosen: list[tuple[int, ...]] = []
    for index in np.argsort(damage):
        apart = [sum(a != b for a, b in zip(choices[index], c, strict=True)) for c in chosen]
        if all(d >= min_distance for d in apart) and len(chosen) < 6:
            chosen.append(choices[index])
            expected.append(float(damage[index]))
    found = diverse(asked, solutions=6, min_distance=min_distance)
    assert [f.score for f in found] == pytest.approx(expected)
    assert all(f.status == "optimal" for f in found)
    for first, second in itertools.combinations(found, 2):
        assert distance(first.spec, second.spec) >= min_distance


def test_fewer_than_asked_where_no_more_exist() -> None:
    asked, damage, _ = problem(0)
    assert len(diverse(asked, solutions=len(damage) + 5, min_distance=1)) == len(damage)


@pytest.mark.parametrize(("solutions", "min_distance"), [(0, 1), (2, 0)])
def test_nothing_is_not_a_number_of_answers(solutions: int, min_distance: int) -> None:
    with pytest.raises(InputError):
        diverse(problem(0)[0], solutions=solutions, min_distance=min_distance)
