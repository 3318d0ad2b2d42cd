"""The frontier against enumeration."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import get_args

import numpy as np
import pytest

from puzzle_search.arch import SearchSpace
from puzzle_search.choices import Axis
from puzzle_search.cost import OperatingPoint
from puzzle_search.errors import InfeasibleError, InputError
from puzzle_search.solve import Limits, Problem, ScoreTable, Workload, formulate
from puzzle_search.solve.answers.frontier import END_SCORE, End, frontier
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
    assert 3 < len(points) <= len(told) <= 10
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
    points = frontier(problem, points=3, end=End(limit="score", value=math.inf), workers=1)
    assert points[-1].limit == pytest.approx(priced.throughput.max(), rel=1e-6)
    assert points[0].solution.score == pytest.approx(priced.damage.min(), abs=1e-12)


def test_other_limits_hold_everywhere() -> None:
    _, priced = case(3)
    memory = float(np.quantile(priced.memory_bytes, 0.5))
    problem, _ = case(3, Limits(memory_bytes=memory))
    for point in frontier(problem, points=4, workers=1):
        assert point.solution.cost.memory_bytes <= memory


def test_ends_on_the_axis_stand_where_they_were_asked() -> None:
    problem, priced = case(4)
    low, high = (float(value) for value in np.quantile(priced.throughput, [0.3, 0.6]))
    ends = [End(limit="throughput", value=value) for value in (low, high)]
    for start, end in (ends, ends[::-1]):
        points = frontier(problem, points=4, start=start, end=end, workers=1)
        assert [points[0].limit, points[-1].limit] == [low, high]


def test_points_are_even_in_damage_and_reach_as_far_as_it_lets_them() -> None:
    problem, priced = case(6)
    level = float(np.quantile(priced.damage, 0.4))
    points = frontier(problem, points=9, end=End(limit="score", value=level), workers=2)
    lowest = priced.damage.min()
    highest = points[-1].solution.score
    for damage in np.linspace(lowest, highest, 9)[1:-1]:
        reachable = priced.throughput[:, priced.damage <= damage + 1e-12].max()
        nearest = min(points, key=lambda point: abs(point.limit - reachable))
        assert nearest.limit == pytest.approx(reachable, rel=1e-8)
        assert nearest.solution.score <= damage + 1e-12
    assert points[-1].limit == pytest.approx(
        priced.throughput[:, priced.damage <= level].max(), rel=1e-8
    )


@pytest.mark.parametrize("limit", ["memory", "latency"])
def test_an_end_of_another_measure_is_the_least_damage_that_reaches_it(limit: Axis) -> None:
    problem, priced = case(7)
    costs = priced.memory_bytes if limit == "memory" else priced.latency_ms
    value = float(np.quantile(costs, 0.5))
    least = priced.damage[(costs <= value).any(axis=0)].min()
    points = frontier(problem, points=3, end=End(limit=limit, value=value), workers=1)
    reachable = priced.throughput[:, priced.damage <= least + 1e-12].max()
    assert points[-1].limit == pytest.approx(reachable, rel=1e-8)


def test_it_goes_on_where_all_answers_are_beyond_the_usual_end() -> None:
    scores = random_scores(CONFIG, SPACE, np.random.default_rng(8))
    rows = [replace(row, value=row.value + 5.0) for row in scores.rows]
    table = table_of(CONFIG, SPACE, [OperatingPoint(batch=2, tp=1)], seed=8)
    fastest = price_all(CONFIG, SPACE, scores, table).throughput.max()
    limits = Limits(tokens_per_second_per_gpu=0.9 * float(fastest))
    workload = Workload.on_device(table, limits)
    problem = formulate(CONFIG, SPACE, ScoreTable(rows, scores.sidecar), [workload])
    points = frontier(problem, axis="memory", points=4, workers=1)
    assert all(point.solution.score > END_SCORE for point in points)
    assert all(point.solution.status == "optimal" for point in points)


def test_what_cannot_be_is_refused() -> None:
    problem, priced = case(5)
    with pytest.raises(InputError, match="1 points"):
        frontier(problem, points=1)
    for value in (math.nan, math.inf, 0.0):
        with pytest.raises(InputError, match="no end of a frontier"):
            frontier(problem, points=3, start=End(limit="throughput", value=value))
    too_fast = End(limit="throughput", value=float(priced.throughput.max() * 2))
    with pytest.raises(InfeasibleError, match="at most"):
        frontier(problem, points=3, end=too_fast)
    with pytest.raises(InputError, match="colour"):
        frontier(problem, axis="colour", points=3)  # type: ignore[arg-type]


def test_a_margin_is_kept_on_every_axis() -> None:
    _, priced = case(6)
    scores = random_scores(CONFIG, SPACE, np.random.default_rng(6))
    table = table_of(CONFIG, SPACE, [OperatingPoint(batch=b, tp=1) for b in (2, 16)], seed=6)
    # A device on which the margin counts: the parent fits, but not with a quarter to spare.
    device = int(priced.memory_bytes.max())
    table = replace(table, target=replace(table.target, memory_limit_bytes=device))
    workload = Workload.on_device(table, Limits(), margin=0.25)
    problem = formulate(CONFIG, SPACE, scores, [workload])
    for axis in get_args(Axis):
        for point in frontier(problem, axis=axis, points=2, workers=1):
            assert point.solution.cost.memory_bytes <= device / 1.25
