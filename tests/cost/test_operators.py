"""Operators: never faster than the hardware, whatever the shape; and forms written out by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from puzzle_search.cost.modelled.constants import AllReduceLines
from puzzle_search.cost.modelled.hardware import CostModel, load_cost_model
from puzzle_search.cost.modelled.operators import (
    all_reduce_us,
    decode_attention_us,
    elementwise_us,
    gemm_us,
    prefill_attention_us,
)
from puzzle_search.cost.modelled.ratios import Ratios
from puzzle_search.cost.modelled.roofline import roofline_engine

WIDTH = {"nvfp4": 0.5 + 1 / 16, "fp8": 1, "bf16": 2, "fp32": 4}
# Every GPU with an operator of its own, without those that differ from these in numbers alone.
CASES = [
    (gpu, engine, dtype)
    for gpu in ("h100", "a100", "l40s", "b200", "rtx4090", "b60", "cpu")
    for engine in load_cost_model(gpu).engines
    for dtype in load_cost_model(gpu).engine(engine).gemm
]
cases = pytest.mark.parametrize(("gpu", "engine", "dtype"), CASES)
attention_cases = pytest.mark.parametrize(
    ("gpu", "engine", "dtype"), [case for case in CASES if case[2] != "nvfp4"]
)
SIZES = st.integers(1, 2**17)
SLACK = 1 - 1e-9


def rates(model: CostModel, dtype: str) -> tuple[float, float]:
    """FLOPs and bytes a microsecond, from the sheet."""
    return model.sheet.flops_per_second[dtype] / 1e6, model.sheet.hbm_bytes_per_second / 1e6


@cases
@given(m=SIZES, n=SIZES, k=SIZES)
def test_gemm(gpu: str, engine: str, dtype: str, m: int, n: int, k: int) -> None:
    model = load_cost_model(gpu)
    flops, bandwidth = rates(model, dtype)
    constants = model.engine(engine).gemm[dtype]
    us = float(gemm_us(m, n, k, dtype=dtype, sheet=model.sheet, constants=constants))
    moved = WIDTH[dtype] * (m * k + n * k) + max(2, WIDTH[dtype]) * m * n
    assert us >= max(2.0 * m * n * k / flops, moved / bandwidth) * SLACK
    quantised = gemm_us(m, n, k, dtype=dtype, sheet=model.sheet, constants=constants, quantise=True)
    assert float(quantised) >= us


@attention_cases
@given(
    batch=st.integers(1, 512),
    tokens=st.integers(1, 2**15),
    before=st.integers(0, 2**15),
    kv_heads=st.integers(1, 8),
    group=st.integers(1, 64),
    head_dim=st.sampled_from([64, 128, 256]),
)
def test_prefill_attention(
    gpu: str,
    engine: str,
    dtype: str,
    batch: int,
    tokens: int,
    before: int,
    kv_heads: int,
    group: int,
    head_dim: int,
) -> None:
    model = load_cost_model(gpu)
    flops, bandwidth = rates(model, dtype)
    us = prefill_attention_us(
        batch,
        tokens,
        tokens + before,
        heads=kv_heads * group,
        kv_heads=kv_heads,
        head_dim=head_dim,
        dtype=dtype,
        sheet=model.sheet,
        constants=model.engine(engine).prefill_attention[dtype],
    )
    # Query i attends to the tokens before and to i + 1 of its own: QK and PV, 4 x head_dim each.
    pairs = tokens * before + tokens * (tokens + 1) / 2
    needed = 4 * head_dim * batch * kv_heads * group * pairs / flops
    cache = 2 * WIDTH[dtype] * head_dim * batch * kv_heads * (tokens + before) / bandwidth
    assert float(us) >= max(needed, cache) * SLACK


@attention_cases
@given(
    batch=st.integers(1, 2048),
    context=st.integers(1, 2**18),
    kv_heads=st.integers(1, 16),
    group=st.integers(1, 128),
    head_dim=st.sampled_from([64, 128, 256]),
)
def test_decode_attention(
    gpu: str,
    engine: str,
    dtype: str,
    batch: int,
    context: int,
    kv_heads: int,
    group: int,
    head_dim: int,
) -> None:
    model = load_cost_model(gpu)
    _, bandwidth = rates(model, dtype)
    us = decode_attention_us(
        batch,
        context,
        heads=kv_heads * group,
        kv_heads=kv_heads,
        head_dim=head_dim,
        dtype=dtype,
        sheet=model.sheet,
        constants=model.engine(engine).decode_attention[dtype],
    )
    cache = 2 * WIDTH[dtype] * head_dim * batch * kv_heads * context / bandwidth
    assert float(us) >= cache * SLACK


@cases
@given(size=st.integers(1, 2**34))
def test_data_movement(gpu: str, engine: str, dtype: str, size: int) -> None:
    model = load_cost_model(gpu)
    constants = model.engine(engine)
    _, bandwidth = rates(model, dtype)
    us = elementwise_us(size, sheet=model.sheet, constants=constants.elementwise)
    assert float(us) >= size / bandwidth * SLACK
    if constants.all_reduce is not None:
        assert model.sheet.link_bytes_per_second is not None
        link = model.sheet.link_bytes_per_second / 1e6
        for tp, lines in constants.all_reduce.by_tp.items():
            reduced = all_reduce_us(size, tp=tp, sheet=model.sheet, lines=lines)
            assert float(reduced) >= size * (tp - 1) / tp / link * SLACK


def test_the_data_sheet_alone_is_a_plain_roofline() -> None:
    sheet = load_cost_model("h100").sheet
    ideal = roofline_engine(sheet)
    m, n, k = np.meshgrid([1, 64, 4096], [512, 8192], [512, 57344])
    us = gemm_us(m, n, k, dtype="fp8", sheet=sheet, constants=ideal.gemm["fp8"])
    # H100 SXM: 3.35 TB/s, 1978.9 dense fp8 TFLOP/s.
    limit = np.maximum(2.0 * m * n * k / 1978.9e6, (m * k + n * k + 2 * m * n) / 3.35e6)
    np.testing.assert_allclose(us, limit, rtol=0.01)
    decode = decode_attention_us(
        [1, 64],
        [100, 4096],
        heads=64,
        kv_heads=8,
        head_dim=128,
        dtype="fp8",
        sheet=sheet,
        constants=ideal.decode_attention["fp8"],
    )
    # Whole blocks of 64 tokens are not rounded up above one block.
    np.testing.assert_allclose(decode, [2 * 8 * 128 * 100 / 3.35e6, 64 * 2048 * 4096 / 3.35e6])
    whole = prefill_attention_us(
        1,
        8192,
        8192,
        heads=8,
        kv_heads=8,
        head_dim=128,
        dtype="bf16",
        sheet=sheet,
        constants=ideal.prefill_attention["bf16"],
    )
    assert float(whole) == pytest.approx(4 * 128 * 8 * 8192 * 8193 / 2 / 989.4e6, rel=0.01)


def test_ratios_interpolate_in_logarithms_and_hold_at_their_edges() -> None:
    ratios = Ratios(
        axes={"rows": np.array([1.0, 4.0, 16.0]), "columns": np.array([2.0, 8.0])},
        tables={"rows columns": np.array([[1.0, 2.0], [4.0, 8.0], [4.0, 8.0]])},
    )
    # Half-way in logarithms between 1 and 4 rows, and on the first column: sqrt(1 x 4).
    assert float(ratios.at(rows=2, columns=2)) == pytest.approx(2)
    assert float(ratios.at(rows=4, columns=4)) == pytest.approx(math.sqrt(4 * 8))
    np.testing.assert_allclose(ratios.at(rows=[0.1, 1000], columns=100), [2, 8])
    twice = replace(ratios, tables=dict(ratios.tables) | {"columns rows": np.full((2, 3), 3.0)})
    np.testing.assert_allclose(twice.at(rows=4, columns=[2, 8]), [12, 24])


@pytest.mark.parametrize("engine", ["trtllm", "vllm", "sglang"])
def test_decode_attention_keeps_its_efficiency_beyond_what_was_timed(engine: str) -> None:
    model = load_cost_model("h100")
    contexts = 2.0 ** np.arange(18, 24)  # timed to 131,072
    us = decode_attention_us(
        64,
        contexts,
        heads=64,
        kv_heads=8,
        head_dim=128,
        dtype="bf16",
        sheet=model.sheet,
        constants=model.engine(engine).decode_attention["bf16"],
    )
    share = 2 * 2 * 64 * 8 * 128 * contexts / us / 3.35e6
    np.testing.assert_allclose(share, share[0], rtol=0.02)
    # No timing of these tables with 128 values a head reaches more than 3.2 of 3.35 TB/s.
    assert np.all(share < 3.2 / 3.35)


def test_all_reduce_between_and_beyond_its_timings() -> None:
    sheet = load_cost_model("l40s").sheet
    lines = AllReduceLines(message_bytes=np.array([1e3, 1e5, 1e7]), us=np.array([10.0, 40.0, 4e3]))
    us = all_reduce_us([10, 1e3, 1e4, 1e7, 3e7], tp=2, sheet=sheet, lines=lines)
    np.testing.assert_allclose(us, [10, 10, 20, 4e3, 12e3])


def test_l40s_all_reduce_is_that_of_pcie() -> None:
    """The tables of aiconfigurator-core 0.12.0: 32 MiB among 8 take 21 ms and more, not 1.7."""
    model = load_cost_model("l40s")
    for engine in model.engines.values():
        assert engine.all_reduce is not None
        us = all_reduce_us(2**25, tp=8, sheet=model.sheet, lines=engine.all_reduce.by_tp[8])
        assert float(us) > 10_000
