"""What experts cost: counts by enumeration, times by hand on a roofline, and the physics."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from puzzle_search.arch import ParentConfig, parse_variant
from puzzle_search.cost.experts import distinct_experts
from puzzle_search.cost.measured.work import subblock_floor, subblock_work
from puzzle_search.cost.memory import activation_bytes, parse_dtype
from puzzle_search.cost.modelled.analytic import AnalyticLatency
from puzzle_search.cost.modelled.hardware import load_cost_model
from puzzle_search.cost.modelled.operators import gemm_us, grouped_gemm_us
from puzzle_search.cost.modelled.roofline import roofline_engine
from tests.arch.configs import CONFIGS
from tests.cost.steps import step

MIXTRAL = ParentConfig.from_dict(CONFIGS["Mixtral-8x7B-v0.1"], name="mixtral")
QWEN = ParentConfig.from_dict(CONFIGS["Qwen3-235B-A22B"], name="qwen")
HIDDEN, WIDTH = 4096, 14336
SIZES = st.integers(1, 2**15)


@pytest.mark.parametrize(("experts", "top_k"), [(4, 2), (5, 1), (3, 3), (6, 2)])
@pytest.mark.parametrize("tokens", [1, 2, 3])
def test_distinct_experts_are_the_mean_over_all_routings(
    experts: int, top_k: int, tokens: int
) -> None:
    choices = list(itertools.combinations(range(experts), top_k))
    counts = [
        len(set(itertools.chain(*routing))) for routing in itertools.product(choices, repeat=tokens)
    ]
    found = float(distinct_experts(experts, top_k, tokens))
    assert found == pytest.approx(sum(counts) / len(counts))


def test_work_of_a_decode_step() -> None:
    at = {"batch": 4, "tokens": 1, "context": 100, "tp": 2}
    work = {
        one.name: one
        for one in subblock_work(parse_variant("ffn", "moe_8"), MIXTRAL, parse_dtype("fp8"), **at)
    }
    read = 8 * (1 - 0.75**4)
    matrix = WIDTH // 2 * HIDDEN
    assert work["router"].dtype == "bf16"
    assert work["router"].moved_bytes == 2 * 8 * HIDDEN
    assert work["router"].flops == 2 * 4 * 8 * HIDDEN
    assert work["gate_up"].flops == 2 * 4 * 2 * 2 * matrix
    assert work["gate_up"].moved_bytes == pytest.approx(read * 2 * matrix)
    assert work["down"].flops == 2 * 4 * 2 * matrix
    assert work["down"].moved_bytes == pytest.approx(read * matrix)
    # Whatever the router: all tokens may pass the same two.
    _, floor = subblock_floor(parse_variant("ffn", "moe_8"), MIXTRAL, parse_dtype("fp8"), **at)
    assert floor == 2 * 3 * matrix + 2 * 8 * HIDDEN


def test_activations_hold_every_experts_channels_and_output() -> None:
    found = activation_bytes(
        MIXTRAL, parse_dtype("bf16"), batch=1, input_len=512, tp=2, widest_ffn=2 * WIDTH, routed=2
    )
    assert found == 2 * 512 * ((4 + 2) * HIDDEN + 2 * WIDTH) + 32000 * 4 // 2


@pytest.mark.parametrize("batch", [1, 3, 64, 4096])
def test_time_on_a_roofline_by_hand(batch: int) -> None:
    model = load_cost_model("h100")
    sharp = dataclasses.replace(model, engines={"vllm": roofline_engine(model.sheet)})
    found = float(
        AnalyticLatency(MIXTRAL, sharp, "vllm", "bf16").subblock_us(
            "ffn", "moe_8", step("decode", batch=batch, tp=1)
        )
    )
    flops = model.sheet.flops_per_second["bf16"] / 1e6
    bandwidth = model.sheet.hbm_bytes_per_second / 1e6
    read, rows = 8 * (1 - 0.75**batch), 2 * batch

    def product(columns: int, inner: int) -> float:
        moved = 2 * (read * columns * inner + rows * (inner + columns))
        return max(2 * rows * columns * inner / flops, moved / bandwidth)

    router = max(
        2 * batch * 8 * HIDDEN / flops, 2 * (8 * HIDDEN + batch * (HIDDEN + 8)) / bandwidth
    )
    # Norm: 2 reads, 2 writes; copies to experts; gate times up; the sum over experts.
    moves = 4 * batch * HIDDEN + 2 * rows * HIDDEN + 3 * rows * WIDTH + (rows + batch) * HIDDEN
    expected = router + product(2 * WIDTH, HIDDEN) + product(HIDDEN, WIDTH) + 2 * moves / bandwidth
    assert found == pytest.approx(expected, rel=1e-3)


@given(rows=SIZES, columns=SIZES, inner=SIZES, groups=st.integers(1, 256))
@pytest.mark.parametrize(
    ("gpu", "engine", "dtype"), [("h200", "vllm", "fp8"), ("a100", "sglang", "bf16")]
)
def test_grouped_products_are_never_faster_than_the_hardware(
    gpu: str, engine: str, dtype: str, rows: int, columns: int, inner: int, groups: int
) -> None:
    model = load_cost_model(gpu)
    settings = {
        "dtype": dtype, "sheet": model.sheet, "constants": model.engine(engine).gemm[dtype],
    }  # fmt: skip
    us = float(grouped_gemm_us(rows, columns, inner, groups, **settings))
    width = 1 if dtype == "fp8" else 2
    moved = width * (groups * columns * inner + rows * inner) + 2 * rows * columns
    limit = max(
        2 * rows * columns * inner / model.sheet.flops_per_second[dtype],
        moved / model.sheet.hbm_bytes_per_second,
    )
    assert us >= 1e6 * limit * (1 - 1e-9)
    bare = dataclasses.replace(settings["constants"], ratios=None)
    one = gemm_us(rows, columns, inner, **settings | {"constants": bare})
    assert float(grouped_gemm_us(rows, columns, inner, 1, **settings)) == pytest.approx(float(one))


def test_fewer_experts_save_time_where_a_batch_reads_them_all() -> None:
    latency = AnalyticLatency(QWEN, load_cost_model("h200"), "vllm", "bf16")

    def us(variant: str, batch: int) -> float:
        return float(latency.subblock_us("ffn", variant, step("decode", batch=batch, tp=1)))

    assert us("moe_64", 1) == pytest.approx(us("moe_128", 1), rel=0.03)  # of both, eight
    assert us("moe_64", 256) < 0.65 * us("moe_128", 256)
    assert us("moe_128_top_4", 1) < 0.7 * us("moe_128", 1)
    assert us("moe_128_width_768", 64) < 0.65 * us("moe_128", 64)
    batches = us("moe_128", 1), us("moe_128", 8), us("moe_128", 64), us("moe_128", 512)
    assert list(batches) == sorted(batches)


def test_products_with_experts_are_derived() -> None:
    found = {
        gpu: AnalyticLatency(QWEN, load_cost_model(gpu), "trtllm", "fp8").evidence
        for gpu in ("h200", "rtx4090")
    }
    assert found == {"h200": "derived", "rtx4090": "datasheet"}


def test_steps_broadcast() -> None:
    latency = AnalyticLatency(MIXTRAL, load_cost_model("h100"), "vllm", "fp8")
    many = step("decode", batch=np.ones((3, 1)), context=np.ones(4), tp=2)
    assert latency.subblock_us("ffn", "moe_4", many).shape == (3, 4)
