"""The search on problems too large to enumerate: against scipy, and out of time."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from scipy.optimize import Bounds, LinearConstraint, milp

from puzzle_search.arch import ArchitectureSpec, SearchSpace
from puzzle_search.cost import CostTable, OperatingPoint
from puzzle_search.solve import (
    Limits,
    Problem,
    ScoreTable,
    Workload,
    formulate,
    solve,
)
from tests.solve.helpers import (
    SIDECAR,
    rows_of,
    seeds,
    table_of,
    tiny_config,
)


def the_table(problem: Problem) -> CostTable:
    (workload,) = problem.workloads
    return workload.table


def medium(seed: int, *, structured: bool = False) -> Problem:
    """80 layers of 6 x 9 variants at one point, with memory and throughput limits."""
    rng = np.random.default_rng(seed)
    raw = {"hidden_size": 256, "num_attention_heads": 8, "num_key_value_heads": 8}
    config = tiny_config(80, **raw, intermediate_size=1024)
    attention = ["gqa_8", "gqa_4", "gqa_2", "gqa_1", "linear", "no_op"]
    ffn = [f"mlp_{w}" for w in (1024, 896, 768, 512, 256, 192, 96)] + ["linear", "no_op"]
    space = SearchSpace.uniform(config, attention=attention, ffn=ffn)
    values: dict[tuple[int, str, str], float] = {}
    curve = np.sort(rng.uniform(0, 1, 5)), np.sort(rng.uniform(0, 1, 8))
    for layer in range(80):
        level = rng.lognormal(0, 0.7, 2) if not structured else np.array([1.0, 1.0])
        for i, v in enumerate(attention[1:]):
            noise = 1 if structured else rng.uniform(0.5, 1.5)
            values[layer, v, ""] = level[0] * curve[0][i] * noise
        for i, v in enumerate(ffn[1:]):
            noise = 1 if structured else rng.uniform(0.5, 1.5)
            values[layer, "", v] = level[1] * curve[1][i] * noise
    table = table_of(config, space, [OperatingPoint(batch=64, tp=1)], seed=seed)
    parent = table.cost(ArchitectureSpec.identity(config), 0)
    target = dataclasses.replace(table.target, memory_limit_bytes=int(0.7 * parent.memory_bytes))
    limits = Limits(tokens_per_second_per_gpu=1.4 * parent.tokens_per_second_per_gpu)
    workload = Workload.on_device(dataclasses.replace(table, target=target), limits)
    return formulate(config, space, ScoreTable(rows_of(values), SIDECAR), [workload])


def milp_bounds(problem: Problem, *, identical: bool = False) -> tuple[float, float]:
    """Lower and upper bound of the plain x[layer, pair] program at the only point, by HiGHS."""
    cost, items = the_table(problem), problem.items
    pairs = len(items) // items.num_layers
    a, f = items.attention[:pairs], items.ffn[:pairs]
    time_us = sum(
        getattr(part, name)[0, chosen]
        for part, chosen in ((cost.attention, a), (cost.ffn, f))
        for name in ("prefill_us", "decode_us")
    )
    memory = cost.attention.memory_bytes[0, a] + cost.ffn.memory_bytes[0, f]
    outside_us = cost.outside_prefill_us[0] + cost.outside_decode_us[0]
    wanted = problem.workloads[0].limits.tokens_per_second_per_gpu
    assert wanted is not None
    tokens = cost.points[0].batch * cost.scenario.output_len / cost.points[0].tp
    room = cost.target.memory_limit_bytes - (
        cost.outside_weight_bytes[0] + cost.activation_bytes[0]
    )
    layers = items.num_layers
    damage, uses = problem.damage, np.stack(
        [np.tile(time_us, layers) / (tokens * 1e6 / wanted - outside_us),
         np.tile(memory, layers) / room]
    )  # fmt: skip
    one = LinearConstraint(np.kron(np.eye(layers), np.ones(pairs)), 1, 1)
    largest = 1
    if identical:  # counts of the pairs say all
        damage, uses, largest = damage[:pairs], uses[:, :pairs], layers
        one = LinearConstraint(np.ones((1, pairs)), layers, layers)
    result = milp(
        damage,
        integrality=np.ones(len(damage)),
        bounds=Bounds(0, largest),
        constraints=[one, LinearConstraint(uses, -np.inf, 1)],
        options={"time_limit": 20, "mip_rel_gap": 1e-6},
    )
    upper = np.inf if result.x is None else float(result.fun)
    return -np.inf if result.mip_dual_bound is None else float(result.mip_dual_bound), upper


@pytest.mark.parametrize("seed", seeds(3, 20))
def test_medium_problems_are_solved_as_by_scipy(seed: int) -> None:
    problem = medium(seed)
    answer = solve(problem, max_seconds=60)
    lower, upper = milp_bounds(problem)
    assert answer.status == "optimal"
    # HiGHS lets limits and integers pass by 1e-6.
    assert lower * (1 - 1e-5) <= answer.score <= upper * (1 + 1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_identical_layers_are_solved_to_optimality(seed: int) -> None:
    answer = solve(medium(seed, structured=True), max_seconds=60)
    lower, upper = milp_bounds(answer.problem, identical=True)
    assert answer.status == "optimal"
    assert lower * (1 - 1e-5) <= answer.score <= upper * (1 + 1e-5)
    assert upper <= lower * (1 + 1e-4)


@pytest.mark.parametrize("max_seconds", [0.0, 0.001, 0.3])
def test_a_timeout_is_never_called_optimal_without_proof(max_seconds: float) -> None:
    problem = medium(3)
    best = solve(problem, max_seconds=60)
    answer = solve(problem, max_seconds=max_seconds)
    assert answer.seconds < max_seconds + 3
    assert answer.bound <= best.score * (1 + 1e-9)
    assert best.score <= answer.score * (1 + 1e-9)
    if answer.status == "optimal":
        assert answer.score == pytest.approx(best.score, rel=1e-9)
    else:
        assert answer.gap == pytest.approx((answer.score - answer.bound) / answer.score)
        assert answer.gap > 0
    assert problem.holds(answer.selection, answer.points)
