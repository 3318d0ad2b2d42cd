"""Cost models fitted to profiles whose constants are known."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from puzzle_search.arch import ParentConfig
from puzzle_search.cost import LatencyRow, Profile, parse_dtype
from puzzle_search.cost.fitting.calibrate_profile import compare_profile
from puzzle_search.cost.fitting.calibration import calibrate
from puzzle_search.cost.modelled.analytic import AnalyticLatency
from puzzle_search.cost.modelled.hardware import CostModel, load_cost_model
from puzzle_search.cost.modelled.roofline import roofline_engine
from puzzle_search.errors import InputError
from tests.arch.configs import CONFIGS
from tests.cost.steps import step
from tests.cost.synthetic_profile import GROUPS, memory_rows, row, sidecar, whole_profile

LLAMA = ParentConfig.from_dict(CONFIGS["Llama-3.1-70B"], name="llama-3.1-70b")


def rows_of(latency: AnalyticLatency, variants: Sequence[tuple[str, str]]) -> list[LatencyRow]:
    """What a device would measure that costs what a model says."""
    rows = []
    points = [("decode", b, 1, n) for b, n in itertools.product((1, 8, 64, 256), (128, 1024, 8192))]
    points += [("prefill", b, n, n) for b, n in ((1, 128), (8, 128), (4, 1024), (1, 4096))]
    for (subblock, name), (phase, batch, tokens, context) in itertools.product(variants, points):
        if not name.startswith("gqa") and phase == "decode" and context > 128:
            continue
        at: dict[str, Any] = {"batch": batch, "tokens": tokens, "context": context}
        us = float(latency.subblock_us(subblock, name, step(phase, tp=1, **at)))  # type: ignore[arg-type]
        rows.append(row(subblock, name, phase, *at.values(), us))
    for batch in (1, 4, 16, 64, 256):
        us = float(latency.outside_us(step("decode", batch=batch, tokens=1, tp=1)))
        parts = {"embedding": 1.0, "head": us - 3.0, "step": 2.0}
        rows += [row("outside", part, "decode", batch, 1, 1, of) for part, of in parts.items()]
    return rows


def test_constants_of_a_gpu_are_found_from_its_own_sheet(tmp_path: Path) -> None:
    sheet = load_cost_model("h200").sheet
    ideal = roofline_engine(sheet)
    gemm = replace(
        ideal.gemm["fp8"], launch_us=6.0, compute_fraction=0.6, memory_fraction=0.85, corner=1.0
    )
    decode = ideal.decode_attention["fp8"]
    (kernel,) = decode.head_dims.values()
    kernel = replace(kernel, floor_us=9.0, us_per_stream=0.02, memory_fraction=0.7)
    engine = replace(
        ideal,
        gemm={"fp8": gemm, "bf16": gemm},
        decode_attention={"fp8": replace(decode, head_dims={128: kernel})},
        elementwise=replace(ideal.elementwise, launch_us=3.0, memory_fraction=0.6),
        step=replace(ideal.step, step_us=30.0),
    )
    model = CostModel(gpu="made", sheet=sheet, engines={"torch": engine})
    variants = [("attention", n) for n in ("gqa_8", "gqa_4", "gqa_1", "linear")]
    variants += [("ffn", n) for n in ("mlp_28672", "mlp_14336", "mlp_5632", "linear")]
    rows = rows_of(AnalyticLatency(LLAMA, model, "torch", "fp8"), variants)
    device = {"kind": "cuda", "name": "NVIDIA H200", "memory_bytes": 150_109_880_320}
    described = sidecar(
        device=device, dtype="fp8", model=LLAMA.name, parent_config=dict(LLAMA.raw),
        prefill_chunk_tokens=8192,
    )  # fmt: skip
    memory = memory_rows(LLAMA, parse_dtype("fp8"), variants)
    Profile(rows, memory, GROUPS, described).write(tmp_path / "profile")

    found = calibrate(tmp_path / "profile")
    assert found.model.gpu == "h200"
    for error in found.errors:
        told = error.as_dict()
        assert told["median"] < 0.03, told
        assert told["median"] < told["datasheet_median"]
    fitted = found.model.engine("torch")
    assert set(fitted.gemm) == {"fp8", "bf16"}
    assert fitted.dtypes == ("fp8",)
    assert fitted.gemm["fp8"].memory_fraction == pytest.approx(0.85, rel=0.1)
    assert fitted.gemm["fp8"].compute_fraction == pytest.approx(0.6, rel=0.1)
    assert fitted.gemm["fp8"].provenance.evidence == "measured"
    assert (fitted.step.max_batch, fitted.step.max_tokens) == (256, 8192)
    # As the file holds it, the model is read again.
    (tmp_path / "h200.yaml").write_text(found.model.to_yaml())
    again = CostModel.from_file(tmp_path / "h200.yaml")
    at = {"batch": np.array([1, 64]), "tokens": 1, "context": 700, "tp": 1}
    us = AnalyticLatency(LLAMA, again, "torch", "fp8").subblock_us(
        "attention", "gqa_8", step("decode", **at)
    )
    true_us = AnalyticLatency(LLAMA, model, "torch", "fp8").subblock_us(
        "attention", "gqa_8", step("decode", **at)
    )
    np.testing.assert_allclose(us, true_us, rtol=0.05)


def test_shards_are_left_out_of_the_fit() -> None:
    both = whole_profile(degrees=(1, 2))
    single = whole_profile()
    sheet = replace(load_cost_model("cpu").sheet, flops_per_second={"bf16": 1e12})
    model = CostModel(gpu="made", sheet=sheet, engines={"torch": roofline_engine(sheet)})
    for a, b in zip(compare_profile(model, both), compare_profile(model, single), strict=True):
        assert a.operator == b.operator
        np.testing.assert_array_equal(a.measured_us, b.measured_us)
    # Outside the blocks a decode step is one point, for each batch whose head was measured.
    decode = compare_profile(model, single)[0]
    outside = [2 + b / 50 + 7 + b / 2 + 40 + b for b in (1, 4, 16)]
    assert decode.operator == "whole subblocks, decode"
    assert np.isin(np.round(outside, 6), np.round(decode.measured_us, 6)).all()


def test_a_device_without_a_sheet_needs_one_named(tmp_path: Path) -> None:
    whole_profile().write(tmp_path)
    with pytest.raises(InputError, match="no cost model ships for abacus") as caught:
        calibrate(tmp_path)
    assert "--sheet" in caught.value.remedy
    with pytest.raises(InputError, match="the sheet of cpu has no bf16 peak"):
        calibrate(tmp_path, load_cost_model("cpu"))
