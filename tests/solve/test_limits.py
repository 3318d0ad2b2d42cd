"""Every kind of limit, several scenarios and runs of layers, against enumeration."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from puzzle_search.arch import SearchSpace, architecture_parameters, kv_values_per_token
from puzzle_search.choices import Goal
from puzzle_search.cost import OperatingPoint
from puzzle_search.errors import InfeasibleError, InputError
from puzzle_search.solve import (
    ChildLimits,
    Limits,
    Problem,
    ScoreRow,
    ScoreTable,
    Workload,
    formulate,
    solve,
)
from puzzle_search.solve.problem.items import Items, Selection
from tests.solve.helpers import SIDECAR, random_scores, table_of, tiny_config

ATTENTION, FFN = ["gqa_4", "gqa_1", "no_op"], ["mlp_64", "mlp_16"]
CONFIG = tiny_config(4)
SPACE = SearchSpace.uniform(CONFIG, attention=ATTENTION, ffn=FFN)
POINTS = [OperatingPoint(batch=b, tp=t) for t in (1, 2) for b in (1, 4, 16)]


def scores(seed: int, *, runs: bool = False) -> ScoreTable:
    table = random_scores(CONFIG, SPACE, np.random.default_rng(seed))
    if not runs:
        return table
    rng = np.random.default_rng(seed)
    several = [
        ScoreRow(
            first_layer=first, last_layer=last, attention=a, ffn=f, metric="kl",
            value=float(rng.uniform(0, 1.5)), stderr=0.0, tokens=1,
        )
        for first, last in ((0, 1), (1, 2), (1, 3), (2, 3))
        for a, f in (("", ""), ("gqa_1", ""), ("", "mlp_16"))
    ]  # fmt: skip
    return ScoreTable([*table.rows, *several], SIDECAR)


def workloads(seed: int, *limits: Limits) -> list[Workload]:
    lengths = ("16/9", "40/5", "8/30")
    return [
        Workload.on_device(table_of(CONFIG, SPACE, POINTS, seed=seed, scenario=length), own)
        for length, own in zip(lengths, limits, strict=False)
    ]


def covers(problem: Problem, layer: int = 0) -> list[list[int]]:
    """Every way to cover the layers from ``layer`` on, by the items' own layers."""
    items = problem.items
    if layer == items.num_layers:
        return [[]]
    return [
        [item, *rest]
        for item in np.flatnonzero(items.first == layer).tolist()
        for rest in covers(problem, int(items.last[item]) + 1)
    ]


def feasible(problem: Problem) -> list[Selection]:
    """Selections that keep every limit at one TP degree, checked scenario by scenario."""
    found = []
    for cover in covers(problem):
        selection = np.array(cover)
        by_tp = []
        for workload in problem.workloads:
            spec = problem.spec(selection)
            costs = [workload.table.cost(spec, i) for i in range(len(workload.table.points))]
            by_tp.append({c.point.tp for c in costs if workload.limits.kept_by(c)})
        if set.intersection(*by_tp):
            found.append(selection)
    return found


def least(problem: Problem) -> float:
    return min((problem.score(s) for s in feasible(problem)), default=np.inf)


def check(problem: Problem, expected: float) -> None:
    if np.isinf(expected):
        with pytest.raises(InfeasibleError):
            solve(problem)
        return
    answer = solve(problem)
    assert answer.status == "optimal"
    assert answer.score == pytest.approx(expected, rel=1e-9, abs=1e-12)


@given(seed=st.integers(0, 10**6))
@settings(max_examples=8, deadline=None)
def test_several_scenarios_each_at_its_own_batch(seed: int) -> None:
    rng = np.random.default_rng(seed)
    free = workloads(seed, Limits(), Limits(), Limits())
    own = formulate(CONFIG, SPACE, scores(seed), free)
    some = [own.spec(np.array(cover)) for cover in covers(own)[:: rng.integers(29, 90)]]
    limits = []
    for workload in free:
        speeds = [workload.table.best_cost(spec) for spec in some]
        target = np.quantile([c.tokens_per_second_per_gpu for c in speeds if c], rng.uniform(0, 1))
        limits.append(Limits(tokens_per_second_per_gpu=float(target) * (1 + 1e-7)))
    problem = formulate(CONFIG, SPACE, scores(seed), workloads(seed, *limits))
    check(problem, least(problem))
    if np.isfinite(least(problem)):
        answer = solve(problem)
        assert len({cost.point.tp for cost in answer.costs}) == 1
        for cost, wanted in zip(answer.costs, limits, strict=True):
            assert wanted.kept_by(cost)


@given(seed=st.integers(0, 10**6))
@settings(max_examples=15, deadline=None)
def test_one_block_for_several_layers(seed: int) -> None:
    rng = np.random.default_rng(seed)
    (free,) = workloads(seed, Limits())
    own = formulate(CONFIG, SPACE, scores(seed, runs=True), [free])
    assert (own.items.last > own.items.first).any()
    best = [free.table.best_cost(own.spec(np.array(c))) for c in covers(own)[::53]]
    target = np.quantile([c.tokens_per_second_per_gpu for c in best if c], rng.uniform(0, 1))
    limits = Limits(tokens_per_second_per_gpu=float(target) * (1 + 1e-7))
    problem = formulate(CONFIG, SPACE, scores(seed, runs=True), workloads(seed, limits))
    check(problem, least(problem))
    if np.isfinite(least(problem)):
        covered = [n for block in solve(problem).spec.blocks for n in block.layers]
        assert covered == list(range(CONFIG.num_layers))


LINEAR = {
    'sum(attention == "no_op") <= 1': lambda s: sum(b.attention == "no_op" for b in s) <= 1,
    "mean(ffn_width == 64) >= 0.5": lambda s: sum(b.ffn == "mlp_64" for b in s) >= 2,
    "sum(kv_heads) == 6": lambda s: (
        sum({"gqa_4": 4, "gqa_1": 1}.get(b.attention, 0) for b in s) == 6
    ),
    'sum(ffn == "mlp_16" and layer >= 2) <= sum(attention == "gqa_1")': lambda s: (
        sum(b.ffn == "mlp_16" for b in s[2:]) <= sum(b.attention == "gqa_1" for b in s)
    ),
}


@pytest.mark.parametrize("text", LINEAR)
@pytest.mark.parametrize("seed", range(3))
def test_linear_limits(seed: int, text: str) -> None:
    fastest = max(
        c.tokens_per_second_per_gpu
        for c in [workloads(seed, Limits())[0].table.best_cost(
            formulate(CONFIG, SPACE, scores(seed), workloads(seed, Limits())).spec(
                np.array(cover))) for cover in covers(
                    formulate(CONFIG, SPACE, scores(seed), workloads(seed, Limits())))[::17]]
        if c
    )  # fmt: skip
    load = workloads(seed, Limits(tokens_per_second_per_gpu=0.5 * fastest))
    free = formulate(CONFIG, SPACE, scores(seed), load)
    expected = min(
        (free.score(s) for s in feasible(free) if LINEAR[text](free.spec(s).blocks)),
        default=np.inf,
    )
    check(formulate(CONFIG, SPACE, scores(seed), load, ChildLimits(linear=(text,))), expected)


@pytest.mark.parametrize("seed", range(4))
def test_limits_of_the_child(seed: int) -> None:
    load = workloads(seed, Limits())
    free = formulate(CONFIG, SPACE, scores(seed), load)
    every = [np.array(cover) for cover in covers(free)]
    specs = [free.spec(selection) for selection in every]
    parameters = np.array([architecture_parameters(spec, CONFIG) for spec in specs])
    kv = np.array(
        [sum(2 * kv_values_per_token(b.attention_variant, CONFIG) for b in s.blocks) for s in specs]
    )
    damage = np.array([free.score(selection) for selection in every])
    most, cache = int(np.quantile(parameters, 0.3)), int(np.quantile(kv, 0.4)) or 1
    child = ChildLimits(parameters=most, kv_bytes_per_token=cache)
    expected = damage[(parameters <= most) & (kv <= cache)].min()
    check(formulate(CONFIG, SPACE, scores(seed), load, child), float(expected))


@pytest.mark.parametrize(
    "goal", ["throughput", "memory", "latency", "ttft", "tpot", "parameters", "kv"]
)
@pytest.mark.parametrize("seed", range(2))
def test_the_best_of_a_cost_within_a_damage_budget(seed: int, goal: Goal) -> None:
    (load,) = workloads(seed, Limits())
    free = formulate(CONFIG, SPACE, scores(seed), [load])
    budget = float(np.quantile([free.score(np.array(c)) for c in covers(free)], 0.2))
    child = ChildLimits(score=budget)
    answer = solve(formulate(CONFIG, SPACE, scores(seed), [load], child, goal=goal))
    assert answer.status == "optimal"
    assert answer.score <= budget
    values = []
    for cover in covers(free):
        if free.score(np.array(cover)) <= budget:
            spec = free.spec(np.array(cover))
            costs = [load.table.cost(spec, i) for i in range(len(POINTS))]
            values.append(
                {
                    "throughput": max(c.tokens_per_second_per_gpu for c in costs),
                    "memory": min(c.memory_bytes for c in costs),
                    "latency": min(c.latency_ms for c in costs),
                    "ttft": min(c.ttft_ms for c in costs),
                    "tpot": min(c.tpot_ms for c in costs),
                    "parameters": architecture_parameters(spec, CONFIG),
                    "kv": sum(
                        2 * kv_values_per_token(b.attention_variant, CONFIG) for b in spec.blocks
                    ),
                }[goal]
            )
    if goal == "throughput":
        assert answer.cost.tokens_per_second_per_gpu == pytest.approx(max(values), rel=1e-9)
    else:
        assert answer.objective == pytest.approx(min(values), rel=1e-6)


def test_frozen_layers_stay_the_parents() -> None:
    limits = Limits(memory_bytes=float(2 * 50 * 32 * 2 + 4e4))
    child = ChildLimits(frozen=frozenset({1, 3}))
    answer = solve(formulate(CONFIG, SPACE, scores(0), workloads(0, limits), child))
    own = ("gqa_4", "mlp_64")
    blocks = [(b.attention, b.ffn) for b in answer.spec.blocks]
    assert blocks[1] == blocks[3] == own
    assert any(block != own for block in blocks)


@pytest.mark.parametrize("layer", [4, 99])
def test_a_layer_that_is_not_there_cannot_be_frozen(layer: int) -> None:
    with pytest.raises(InputError, match=str(layer)):
        formulate(
            CONFIG, SPACE, scores(0), workloads(0, Limits()), ChildLimits(frozen=frozenset({layer}))
        )


def test_scores_of_a_larger_model_are_refused() -> None:
    small = tiny_config(3)
    space = SearchSpace.uniform(small, attention=ATTENTION, ffn=FFN)
    with pytest.raises(InputError, match="layer 3"):
        formulate(small, space, scores(0), workloads(0, Limits()))


def test_a_margin_keeps_predictions_away_from_limits() -> None:
    table = workloads(0, Limits())[0].table
    limits = Limits(tokens_per_second_per_gpu=1000.0, ttft_ms=50.0, memory_bytes=2e5)
    kept = Workload.on_device(table, limits, margin=0.25).limits
    assert kept.tokens_per_second_per_gpu == pytest.approx(1250)
    assert kept.ttft_ms == pytest.approx(40)
    assert kept.memory_bytes == pytest.approx(1.6e5)


def test_a_run_over_a_frozen_layer_is_not_offered() -> None:
    child = ChildLimits(frozen=frozenset({2}))
    problem = formulate(CONFIG, SPACE, scores(0, runs=True), workloads(0, Limits()), child)
    spans = {(int(f), int(n)) for f, n in zip(problem.items.first, problem.items.last, strict=True)}
    assert spans == {(0, 0), (1, 1), (2, 2), (3, 3), (0, 1)}


@pytest.mark.parametrize(("factor", "seed"), list(itertools.product((1e-6, 1e6), range(5))))
def test_units_of_scores_do_not_matter_with_runs(seed: int, factor: float) -> None:
    table = scores(seed, runs=True)
    scaled = ScoreTable(
        [dataclasses.replace(row, value=row.value * factor) for row in table.rows], SIDECAR
    )
    limits = Limits(memory_bytes=4e4)
    first, second = (
        solve(formulate(CONFIG, SPACE, t, workloads(seed, limits))) for t in (table, scaled)
    )
    assert first.spec.blocks == second.spec.blocks


@pytest.mark.parametrize("goal", ["ttft", "memory", "throughput"])
@pytest.mark.parametrize("seed", range(3))
def test_the_goal_decides_between_tp_degrees(seed: int, goal: Goal) -> None:
    load = workloads(seed, Limits(), Limits())
    free = formulate(CONFIG, SPACE, scores(seed), load)
    budget = float(np.quantile([free.score(np.array(c)) for c in covers(free)], 0.2))
    problem = formulate(CONFIG, SPACE, scores(seed), load, ChildLimits(score=budget), goal=goal)
    answer = solve(problem)
    field = {"ttft": "ttft_ms", "memory": "memory_bytes", "throughput": "latency_ms"}[goal]
    reached = []
    for cover in covers(free):
        if free.score(np.array(cover)) <= budget:
            spec = free.spec(np.array(cover))
            costs = [load[0].table.cost(spec, i) for i in range(len(POINTS))]
            if goal == "throughput":
                reached.append(-max(c.tokens_per_second_per_gpu for c in costs))
            else:
                reached.append(min(getattr(c, field) for c in costs))
    assert answer.status == "optimal"
    cost = answer.cost
    mine = -cost.tokens_per_second_per_gpu if goal == "throughput" else getattr(cost, field)
    assert mine == pytest.approx(min(reached), rel=1e-6)


def test_a_run_that_leads_nowhere_is_left_out() -> None:
    # Layer 1 by itself needs a block for layer 0 by itself, which there is none of.
    items = Items(
        num_layers=3,
        first=np.array([0, 1, 2]),
        last=np.array([1, 1, 2]),
        attention=np.zeros(3, dtype=np.intp),
        ffn=np.zeros(3, dtype=np.intp),
    )
    assert items.usable().tolist() == [True, False, True]
    assert items.uncovered_layer() is None
