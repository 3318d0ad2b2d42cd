"""Operators: never faster than the hardware, whatever the shape; and forms written out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from puzzle_search.cost.modelled.hardware import CostModel, load_cost_model
from puzzle_search.cost.modelled.operators import (
    all_reduce_us,
    decode_attention_us,
    elementwise_us,
    gemm_us,
    prefill_attention_us,
)
from puzzle_search.cost.modelled.roofline import roofline_engine

WIDTH = {"fp8": 1, "bf16": 2, "fp32": 4}
CASES = [
    (gpu, engine, dtype)
    for gpu in ("h100", "h200", "a100", "l40s", "b200", "rtx4090", "cpu")
    for engine in load_cost_model(gpu).engines
    for dtype in load_cost_model(gpu).engine(engine).dtypes
]
cases = pytest.mark.parametrize(("gpu", "engine", "dtype"), CASES)
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


@cases
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


@cases
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
    # One output value a tile: the last wave over 132 SMs is all that differs.
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


def test_a_kernel_dispatched_by_rows_steps_where_its_tile_changes() -> None:
    model = load_cost_model("h100")
    gemm = model.engine("vllm").gemm["fp8"]
    assert list(gemm.tiles) == [1, 65, 129, 8192]
    us = gemm_us([256, 257], 8192, 8192, dtype="fp8", sheet=model.sheet, constants=gemm)
    # 64 columns of tiles of 128; clusters of two rows: 128 tiles fill one wave of 132 SMs, 256 two.
    # The tables of aiconfigurator have 34.8 us against 82.8 us at k = 7168.
    assert us[1] > 1.5 * us[0]
