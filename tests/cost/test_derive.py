"""One device derived from another: limits of the physics, and what the result says of itself."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from puzzle_search.cost.modelled.constants import DecodeKernel
from puzzle_search.cost.modelled.derive import derive
from puzzle_search.cost.modelled.hardware import CostModel, load_cost_model
from puzzle_search.cost.modelled.model_file import plain
from puzzle_search.cost.modelled.operators import (
    all_reduce_us,
    decode_attention_us,
    gemm_us,
    prefill_attention_us,
)
from puzzle_search.cost.modelled.ratios import Ratios
from puzzle_search.cost.modelled.roofline import roofline_engine
from puzzle_search.errors import InputError

SLOWER = 4.8 / 3.35


@pytest.fixture(scope="module")
def h200() -> CostModel:
    return load_cost_model("h200")


@pytest.fixture(scope="module")
def h100(h200: CostModel) -> CostModel:
    return derive(h200, gpu="h100", sheet=load_cost_model("h100").sheet)


def decode_us(
    model: CostModel, engine: str, dtype: str, *, heads: int, kv_heads: int, head_dim: int = 128
) -> float:
    """A large step: 256 sequences of 8192 tokens."""
    us = decode_attention_us(
        256,
        8192,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        dtype=dtype,
        sheet=model.sheet,
        constants=model.engine(engine).decode_attention[dtype],
    )
    return float(us)


def test_an_ideal_device_becomes_the_other_ideal_device(h200: CostModel) -> None:
    other = load_cost_model("l40s").sheet
    ideal = replace(h200, engines={"ideal": roofline_engine(h200.sheet)})
    found = derive(ideal, gpu="l40s", sheet=other).engine("ideal")
    expected = roofline_engine(other)
    for dtype in ("bf16", "fp8"):
        gemm, attention = found.gemm[dtype], found.prefill_attention[dtype]
        assert gemm.memory_fraction == pytest.approx(1)
        (prefill,) = attention.head_dims.values()
        (roofline,) = expected.prefill_attention[dtype].head_dims.values()
        assert prefill.memory_fraction == pytest.approx(1)
        assert replace(prefill, memory_fraction=1.0) == roofline
        (kernel,) = found.decode_attention[dtype].head_dims.values()
        assert kernel.memory_fraction == pytest.approx(1)


def test_the_same_sheet_changes_nothing(h200: CostModel) -> None:
    twin = derive(h200, gpu="twin", sheet=h200.sheet)
    for name, engine in h200.engines.items():
        for dtype in engine.gemm:
            old, new = (
                model.engine(name).decode_attention[dtype].head_dims for model in (h200, twin)
            )
            for size in old:
                for table, ratio in old[size].ratios.tables.items():
                    np.testing.assert_allclose(new[size].ratios.tables[table], ratio)
            gemm = twin.engine(name).gemm[dtype]
            assert gemm.memory_fraction == pytest.approx(engine.gemm[dtype].memory_fraction)


def test_what_stops_short_of_the_bandwidth_is_bound_on_chip(h200: CostModel) -> None:
    """Decode attention at 0.3 of the bandwidth in one head_dim, at 0.9 in another."""
    ideal = roofline_engine(h200.sheet)
    decode = ideal.decode_attention["fp8"]
    flat = Ratios(
        axes={name: np.array([1.0, 2.0**24]) for name in ("work", "context", "group", "streams")},
        tables={"group work": np.ones((2, 2))},
    )
    kernels = {
        head_dim: DecodeKernel(
            floor_us=0.0,
            us_per_stream=0.0,
            memory_fraction=fraction,
            ceiling_fraction=fraction,
            ratios=flat,
        )
        for head_dim, fraction in ((64, 0.9), (128, 0.3))
    }
    engine = replace(
        ideal,
        gemm={dtype: replace(of, memory_fraction=0.8) for dtype, of in ideal.gemm.items()},
        elementwise=replace(ideal.elementwise, memory_fraction=0.8),
        decode_attention={"fp8": replace(decode, head_dims=kernels)},
        prefill_attention={"fp8": ideal.prefill_attention["fp8"]},
    )
    base = replace(h200, engines={"toy": engine})
    half = replace(h200.sheet, hbm_bytes_per_second=2.4e12)
    derived = derive(base, gpu="half", sheet=half)
    shape = {"heads": 8, "kv_heads": 8}
    for head_dim, memory_share in ((64, 1.0), (128, (0.3 / 0.9) ** 3.2)):
        slower = decode_us(derived, "toy", "fp8", head_dim=head_dim, **shape) / decode_us(
            base, "toy", "fp8", head_dim=head_dim, **shape
        )
        expected = (1 - memory_share + memory_share * 2**3.2) ** (1 / 3.2)
        assert slower == pytest.approx(expected, rel=1e-3)
    # Twice the SMs take half the time on chip.
    wide = derive(base, gpu="wide", sheet=replace(h200.sheet, num_sms=2 * h200.sheet.num_sms))
    faster = decode_us(wide, "toy", "fp8", **shape) / decode_us(base, "toy", "fp8", **shape)
    memory = (0.3 / 0.9) ** 3.2
    assert faster == pytest.approx(((1 - memory) * 0.5**3.2 + memory) ** (1 / 3.2), rel=1e-3)


def test_another_vendors_chip_is_refused(h200: CostModel) -> None:
    chip = replace(load_cost_model("b60").sheet, vendor="intel")
    with pytest.raises(InputError, match="b60 is a chip of intel, h200 of nvidia"):
        derive(h200, gpu="b60", sheet=chip)


@pytest.mark.parametrize("engine", ["trtllm", "vllm"])
@pytest.mark.parametrize("dtype", ["bf16", "fp8"])
def test_h200_to_h100(h200: CostModel, h100: CostModel, engine: str, dtype: str) -> None:
    """Ratios as published timings show them, and as both sheets say."""

    def gemm_ratio(rows: int) -> float:
        new, old = (
            float(
                gemm_us(
                    *(rows, 8192, 8192),
                    dtype=dtype,
                    sheet=model.sheet,
                    constants=model.engine(engine).gemm[dtype],
                )
            )
            for model in (h100, h200)
        )
        return new / old

    assert 1.2 < gemm_ratio(16) < SLOWER
    assert gemm_ratio(16384) == pytest.approx(1, abs=0.03)

    new, old = (
        float(
            prefill_attention_us(
                *(8, 4096, 4096),
                heads=64,
                kv_heads=8,
                head_dim=128,
                dtype=dtype,
                sheet=model.sheet,
                constants=model.engine(engine).prefill_attention[dtype],
            )
        )
        for model in (h100, h200)
    )
    assert new / old == pytest.approx(1, abs=0.02)

    reduces = [model.engine(engine).all_reduce for model in (h100, h200)]
    assert reduces[0] is not None
    assert reduces[1] is not None
    size = np.array([2.0**14, 2.0**24])
    new_us, old_us = (
        all_reduce_us(size, tp=4, sheet=h100.sheet, lines=reduce.by_tp[4]) for reduce in reduces
    )
    np.testing.assert_allclose(new_us, old_us)


def test_decode_attention_by_what_bounds_it(h200: CostModel, h100: CostModel) -> None:
    def ratio(engine: str, dtype: str) -> float:
        shape = {"heads": 64, "kv_heads": 8}
        return decode_us(h100, engine, dtype, **shape) / decode_us(h200, engine, dtype, **shape)

    # bf16 waits for memory; fp8 in vLLM is limited on chip: published timings of large steps of
    # both GPUs differ 1.09 to 1.16 times, which is met within 10%.
    assert ratio("vllm", "bf16") == pytest.approx(SLOWER, rel=0.05)
    assert ratio("vllm", "fp8") == pytest.approx(1.125, rel=0.1)


def test_no_prediction_beats_the_sheet(h100: CostModel) -> None:
    for name in h100.engines:
        for dtype, peak_bytes in (("bf16", 2), ("fp8", 1)):
            us = decode_us(h100, name, dtype, heads=64, kv_heads=8)
            assert us >= 256 * 8192 * 8 * 128 * 2 * peak_bytes / 3.35e6


def test_evidence_is_never_stronger_than_it_was(
    tmp_path: Path, h200: CostModel, h100: CostModel
) -> None:
    for name, engine in h100.engines.items():
        old = h200.engine(name)
        assert engine.all_reduce is not None
        for group in (
            *engine.gemm.values(),
            *engine.prefill_attention.values(),
            *engine.decode_attention.values(),
            engine.all_reduce,
        ):
            assert group.provenance.evidence == "derived"
            assert group.provenance.source.startswith("carried over from the h200")
            assert "published: aiconfigurator-core" in group.provenance.source
            assert group.provenance.error_median is None
        for group, before in ((engine.elementwise, old.elementwise), (engine.step, old.step)):
            expected = before.provenance.evidence.replace("published", "derived")
            assert group.provenance.evidence == expected
    file = tmp_path / "h100.yaml"
    file.write_text(h100.to_yaml())
    assert plain(CostModel.from_file(file).engines) == plain(h100.engines)
