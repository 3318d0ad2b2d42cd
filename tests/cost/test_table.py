"""The cost table against explicit sums."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from puzzle_search.arch import ArchitectureSpec, SearchSpace
from puzzle_search.cost import CostTable, OperatingPoint
from puzzle_search.cost.scaled import ScaledLatency
from tests.cost.steps import step
from tests.solve.helpers import SeededLatency, table_of, tiny_config

CONFIG = tiny_config(3)
SPACE = SearchSpace.uniform(CONFIG, attention=["gqa_4", "gqa_1", "no_op"], ffn=["mlp_64", "linear"])
PAIRS = [("gqa_4", "mlp_64"), ("gqa_1", "linear"), ("no_op", "mlp_64")]
SPEC = ArchitectureSpec.of("tiny", PAIRS)
POINTS = [OperatingPoint(batch=b, tp=t) for t in (2, 1) for b in (3, 7)]


def table(scenario: str = "16/9", **changes: int) -> CostTable:
    return table_of(CONFIG, SPACE, POINTS, seed=5, scenario=scenario, **changes)


@pytest.mark.parametrize("scenario", ["16/9", "5/1", "1/2", "10/200"])
@pytest.mark.parametrize("index", range(4))
def test_time_is_a_sum_over_layers_and_steps(scenario: str, index: int) -> None:
    input_len, output_len = map(int, scenario.split("/"))
    costs = table(scenario)
    point, latency = costs.points[index], SeededLatency(5)
    on = {"batch": point.batch, "tp": point.tp}

    def step_us(phase: str, tokens: int, context: int) -> float:
        asked = step(phase, tokens=tokens, context=context, **on)
        total = float(latency.outside_us(asked))
        for pair in PAIRS:
            for subblock, name in zip(("attention", "ffn"), pair, strict=True):
                total += float(
                    latency.subblock_us(
                        subblock, name, step(phase, tokens=tokens, context=context, **on)
                    )
                )
        return total

    prefill = step_us("prefill", input_len, input_len)
    # The first output token comes from prefill; step s of the others sees input_len + s tokens.
    decode = sum(step_us("decode", 1, input_len + s) for s in range(1, output_len))
    cost = costs.cost(SPEC, index)
    assert cost.point == point
    assert cost.ttft_ms == pytest.approx(prefill / 1e3)
    assert cost.tpot_ms == pytest.approx(decode / max(1, output_len - 1) / 1e3)
    assert cost.latency_ms == pytest.approx((prefill + decode) / 1e3)
    tokens = point.batch * output_len / point.tp
    assert cost.tokens_per_second_per_gpu == pytest.approx(tokens / ((prefill + decode) * 1e-6))


@pytest.mark.parametrize("index", range(4))
def test_memory_by_hand(index: int) -> None:
    costs = table()
    point = costs.points[index]
    batch, tp = point.batch, point.tp
    # Hidden size 32, 4 query heads of 8, bf16.
    gqa_4 = 2 * (2 * 32 * 32 // tp + 2 * 32 * 8 * (4 // tp)) + 64
    gqa_1 = 2 * (2 * 32 * 32 // tp + 2 * 32 * 8) + 64
    mlp, linear = 2 * 3 * 32 * 64 // tp + 64, 2 * 32 * 32 // tp + 64
    outside = 2 * (2 * 50 * 32 // tp + 32)
    kv = batch * (16 + 9) * 2 * 2 * 8 * (4 // tp + 1)
    kept = gqa_4 + gqa_1 + 2 * mlp + linear + outside + kv
    activations = 16 * batch * (4 * 32 + 2 * 64 // tp) * 2 + batch * 50 * 4 // tp
    cost = costs.cost(SPEC, index)
    assert cost.weights_and_kv_bytes == kept
    assert cost.memory_bytes == kept + activations


def test_the_order_of_the_blocks_does_not_change_the_cost() -> None:
    costs = table()
    turned = ArchitectureSpec.of("tiny", PAIRS[::-1])
    for index in range(4):
        assert costs.cost(turned, index) == costs.cost(SPEC, index)


def test_best_cost_is_the_fastest_that_fits() -> None:
    costs = table()
    every = [costs.cost(SPEC, index) for index in range(4)]
    fastest = max(every, key=lambda cost: cost.tokens_per_second_per_gpu)
    assert costs.best_cost(SPEC) == fastest
    room = fastest.memory_bytes - 1
    tight = table(memory_limit_bytes=room)
    fitting = [c.tokens_per_second_per_gpu for c in every if c.memory_bytes <= room]
    best = tight.best_cost(SPEC)
    assert best is not None
    assert best.tokens_per_second_per_gpu == max(fitting) < fastest.tokens_per_second_per_gpu
    assert table(memory_limit_bytes=1).best_cost(SPEC) is None


def test_points_keep_their_costs_when_sorted_by_tp() -> None:
    costs = table()
    assert sorted(costs.points, key=lambda p: (p.tp, p.batch)) == sorted(
        POINTS, key=lambda p: (p.tp, p.batch)
    )
    alone = table_of(CONFIG, SPACE, [POINTS[0]], seed=5).cost(SPEC, 0)
    assert alone == costs.cost(SPEC, costs.points.index(POINTS[0]))


def test_a_scaled_latency_scales_every_time() -> None:
    base = SeededLatency(5)
    scaled = ScaledLatency(base=base, scalar=1.5)  # type: ignore[arg-type]
    on = {"batch": np.array([1, 2]), "tokens": 1, "tp": 1}
    assert scaled.evidence == base.evidence
    np.testing.assert_allclose(
        scaled.subblock_us("attention", "gqa_4", step("decode", context=9, **on)),
        1.5 * base.subblock_us("attention", "gqa_4", step("decode", context=9, **on)),
    )
    np.testing.assert_allclose(
        scaled.outside_us(step("decode", **on)), 1.5 * base.outside_us(step("decode", **on))
    )


def test_the_written_cost() -> None:
    cost = table().cost(SPEC, 0)
    written = dataclasses.replace(cost, tokens_per_second_per_gpu=1234.56789).as_dict()
    assert written["tokens_per_second_per_gpu"] == 1234.568
    assert (written["input_len"], written["output_len"]) == (16, 9)
