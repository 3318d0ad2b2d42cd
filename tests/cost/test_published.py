"""The shipped cost models against published figures, as users get them, in any clone; and laws."""

from __future__ import annotations

import statistics

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from puzzle_search.arch import ArchitectureSpec, ParentConfig
from puzzle_search.choices import ServingMode
from puzzle_search.cost import OperatingPoint, Scenario, ScenarioCost
from puzzle_search.cost.fitting.calibrate_engine import PublishedThroughput, fit_step, predict
from puzzle_search.cost.modelled.hardware import load_cost_model
from puzzle_search.cost.modelled.target import modelled_target
from puzzle_search.cost.pricing import build_cost_table
from puzzle_search.cost.serving import ServingOptions
from puzzle_search.resources import resource
from tests.cost.published import KERNEL_TPOT_MS, ROWS, SCALARS

LLAMA = ParentConfig.from_file(resource("examples", "llama-3.1-70b", "config.json"), name="70b")
PAIR = (LLAMA.attention, LLAMA.ffn)


def published(row: tuple[str, str, int, int, int, float]) -> PublishedThroughput:
    release, _, input_len, output_len, tp, rate = row
    return PublishedThroughput(
        release=release,
        model="70b",
        blocks=(PAIR,) * LLAMA.num_layers,
        scenario=Scenario(input_len=input_len, output_len=output_len),
        tp=tp,
        tokens_per_second_per_gpu=rate,
    )


def ratio(row: tuple[str, str, int, int, int, float]) -> float:
    said = predict(published(row), LLAMA, load_cost_model(row[1]))
    return said.tokens_per_second_per_gpu / row[5] / SCALARS[row[0]]


def cost(
    batch: int,
    tp: int = 1,
    scenario: str = "1000/1000",
    gpu: str = "h100",
    pair: tuple[str, str] = PAIR,
    mode: ServingMode = "in-flight",
) -> ScenarioCost:
    target = modelled_target(
        load_cost_model(gpu), LLAMA, engine="trtllm", dtype="fp8", serving=ServingOptions(mode=mode)
    )
    table = build_cost_table(
        LLAMA, target, Scenario.parse(scenario), [OperatingPoint(batch=batch, tp=tp)],
        attention=[pair[0]], ffn=[pair[1]],
    )  # fmt: skip
    return table.cost(ArchitectureSpec.of("70b", [pair] * LLAMA.num_layers), 0)


# --- published ------------------------------------------------------------------------------------


def test_published_throughput_is_what_users_get() -> None:
    ratios = {row: ratio(row) for row in ROWS}
    assert statistics.fmean(abs(one - 1) for one in ratios.values()) <= 0.06
    for tp in (1, 2, 4, 8):
        mean = statistics.fmean(one for row, one in ratios.items() if row[4] == tp)
        assert mean == pytest.approx(1, abs=0.06), tp


def test_the_70b_on_one_h100() -> None:
    assert ratio(ROWS[0]) == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("gpu", ["h100", "h200"])
@pytest.mark.parametrize("tp", [1, 2, 4, 8])
def test_a_user_alone_waits_for_kernels_and_next_to_nothing_else(gpu: str, tp: int) -> None:
    kernels = KERNEL_TPOT_MS[gpu][tp]
    assert 0.85 * kernels <= cost(1, tp, gpu=gpu).tpot_ms <= 1.15 * kernels + 1.0


def test_the_engines_own_work_is_found_again() -> None:
    # Rows that an engine with known constants would have published, of two releases.
    models = {gpu: load_cost_model(gpu) for gpu in ("h100", "h200")}
    rows = []
    for row in ROWS:
        said = predict(published(row), LLAMA, models[row[1]]).tokens_per_second_per_gpu
        scalar = {"blog-2024-09": 1.0, "0.17": 1.25, "0.14.0": 0.9}[row[0]]
        rows.append((models[row[1]], published((*row[:5], said / scalar))))
    found, left_out = fit_step(rows, LLAMA, source="test")
    for gpu, model in models.items():
        step, known = found[gpu], model.engine("trtllm").step
        assert step.engine_scalar == pytest.approx(known.engine_scalar, rel=0.005)
        assert step.step_us_per_root_sequence == pytest.approx(
            known.step_us_per_root_sequence, rel=0.005, abs=1
        )
        assert step.rank_us_per_root_sequence == pytest.approx(
            known.rank_us_per_root_sequence, rel=0.005, abs=1
        )
    assert abs(left_out).max() < 0.01


# --- laws -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("gpu", ["h100", "h200"])
@given(batch=st.integers(1, 64), scenario=st.sampled_from(["128/1024", "1000/1000", "2048/128"]))
@settings(max_examples=20, deadline=None)
def test_up_to_64_sequences_more_devices_are_never_slower_for_a_user(
    gpu: str, batch: int, scenario: str
) -> None:
    tpot = [cost(batch, tp, scenario, gpu).tpot_ms for tp in (1, 2, 4, 8)]
    assert tpot == sorted(tpot, reverse=True)


@given(batch=st.integers(1, 500), tp=st.sampled_from([1, 2, 8]), times=st.integers(2, 4))
@settings(max_examples=20, deadline=None)
def test_more_sequences_take_longer_and_give_more(batch: int, tp: int, times: int) -> None:
    few, many = cost(batch, tp), cost(batch * times, tp)
    assert many.latency_ms > few.latency_ms
    assert many.tokens_per_second_per_gpu > few.tokens_per_second_per_gpu
    assert many.memory_bytes > few.memory_bytes


@given(batch=st.integers(1, 256), tp=st.sampled_from([1, 4]))
@settings(max_examples=15, deadline=None)
def test_what_is_larger_takes_longer(batch: int, tp: int) -> None:
    base = cost(batch, tp).latency_ms
    assert cost(batch, tp, pair=(PAIR[0], "mlp_14336")).latency_ms < base
    if batch >= 16:  # a batch of one is timed a little slower with fewer KV heads
        assert cost(batch, tp, pair=("gqa_2", PAIR[1])).latency_ms < base
    assert cost(batch, tp, "2000/1000").latency_ms > base
    assert cost(batch, tp, "1000/1001").latency_ms > base


@given(batch=st.integers(2, 256), scenario=st.sampled_from(["128/1024", "1000/1000", "2048/128"]))
@settings(max_examples=15, deadline=None)
def test_in_flight_a_request_waits_less_for_its_first_token(batch: int, scenario: str) -> None:
    flying, static = (cost(batch, 2, scenario, mode=mode) for mode in ("in-flight", "static"))
    assert flying.ttft_ms < static.ttft_ms
    assert flying.tpot_ms >= 0.97 * static.tpot_ms
