"""The frontier against enumeration."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from puzzle_search.arch import SearchSpace
from puzzle_search.choices import Axis
from puzzle_search.cost import OperatingPoint
from puzzle_search.errors import InfeasibleError, InputError
from puzzle_search.solve import Limits, Problem, Workload, formulate
from puzzle_search.solve.answers.frontier import frontier
from tests.solve.helpers import Priced, price_all, random_scores, table_of, tiny_config

CONFIG = tiny_config(4)
SPACE = SearchSpace.uniform(CONFIG, attention=["gqa_4", "gqa_1", "no_op"], ffn=["mlp_64", "mlp_16"])


def case(seed: int, limits: Limits | None = None) -> tuple[Problem, Priced]:
    scores = random_scores(CONFIG, SPACE, np.random.default_rng(seed))
    table = table_of(CONFIG, SPACE, [OperatingPoint(batch=b, tp=1) for b in (2, 16)], seed=seed)
    workload = Workload.on_device(table, limits or Limits())
    return formulate(CONFIG, SPACE, scores, [workload]), price_all(CONFIG, SPACE, scores, table)


@pytest.mark.parametrize("axis", ["throughput", "memory", "latency"])
def test_each_point_is_the_best_there_is(axis: Axis) -> None:
    problem, priced = case(1)
    told: list[str] = []
    points = frontier(problem, axis=axis, points=10, workers=2, progress=told.append)
    assert [point.limit for point in points] == sorted(point.limit for point in points)
    assert len(points) == len(told) == 10
    for point in points:
        keep = {
            "throughput": priced.throughput >= point.limit,
            "memory": priced.memory_bytes <= point.limit,
            "latency": priced.latency_ms <= point.limit,
        }[axis].any(axis=0)
        assert point.solution.status == "optimal"
        assert point.solution.score == pytest.approx(priced.damage[keep].min(), abs=1e-12)
    values = [point.solution.score for point in points]
    falling = values if axis != "throughput" else values[::-1]
    assert all(a >= b - 1e-12 for a, b in itertools.pairwise(falling))


def test_it_runs_from_the_free_optimum_to_the_extreme() -> None:
    problem, priced = case(2)
    points = frontier(problem, points=3, workers=1)
    assert points[-1].limit == pytest.approx(priced.throughput.max(), rel=1e-6)
    assert points[0].solution.score == pytest.approx(priced.damage.min(), abs=1e-12)


def test_other_limits_hold_everywhere() -> None:
    _, priced = case(3)
    memory = float(np.quantile(priced.memory_bytes, 0.5))
    problem, _ = case(3, Limits(memory_bytes=memory))
    for point in frontier(problem, points=4, workers=1):
        assert point.solution.cost.memory_bytes <= memory


def test_ends_can_be_given() -> None:
    problem, priced = case(4)
    low, high = np.quantile(priced.throughput, [0.3, 0.6])
    points = frontier(problem, points=3, lowest=float(low), highest=float(high), workers=1)
    assert [p.limit for p in points] == pytest.approx([low, (low + high) / 2, high])


def test_what_cannot_be_is_refused() -> None:
    problem, priced = case(5)
    with pytest.raises(InputError, match="1 points"):
        frontier(problem, points=1)
    with pytest.raises(InputError, match="from"):
        frontier(problem, points=3, lowest=2.0, highest=1.0)
    with pytest.raises(InfeasibleError, match="at most"):
        frontier(problem, points=3, highest=float(priced.throughput.max() * 2))
    with pytest.raises(InputError, match="colour"):
        frontier(problem, axis="colour", points=3)  # type: ignore[arg-type]
