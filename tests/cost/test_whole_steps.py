"""Profiles of a foreign engine, whose steps have embedding and head in them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from puzzle_search.cost import Profile
from puzzle_search.cost.fitting.calibrate_profile import ENGINE, compare_profile
from puzzle_search.cost.modelled.hardware import load_cost_model
from puzzle_search.cost.modelled.roofline import roofline_engine
from tests.cost.steps import prefill_us, step
from tests.cost.synthetic_profile import GROUPS, curve_rows, sidecar, whole_profile


def step_us(batch: int) -> float:
    """Embedding, head and step of the synthetic profile, for one token of each sequence."""
    return (2 + batch / 50) + (7 + batch / 2) + (40 + batch)


def foreign_profile() -> Profile:
    rows = [row for row in whole_profile().rows if row.subblock != "outside"]
    rows += curve_rows("outside", "step", (1, 4, 16), step_us)
    ceilings = {"copy_bytes_per_second": None, "matmul_flops_per_second": {}}
    return Profile(rows, [], GROUPS, sidecar(engine="vllm 0.24.0", ceilings=ceilings))


def test_a_step_is_all_that_stands_outside() -> None:
    profile = foreign_profile()
    assert profile.whole_steps
    assert not whole_profile().whole_steps
    decode = profile.outside_us(step("decode", batch=[1, 4, 10], tokens=1, tp=1))
    assert decode == pytest.approx([step_us(1), step_us(4), step_us(10)])
    # Chunks of 100 tokens: 10 prompts of 25 are two of 4 and one of 2.
    prefill = prefill_us(profile, "outside", "", batch=10, tokens=25)
    assert float(prefill) == pytest.approx(2 * step_us(4) + step_us(2))


def test_it_is_written_without_bytes_and_ceilings(tmp_path: Path) -> None:
    profile = foreign_profile()
    profile.write(tmp_path)
    read = Profile.from_folder(tmp_path)
    assert read.rows == profile.rows
    assert read.memory == []
    assert read.sidecar["ceilings"]["copy_bytes_per_second"] is None


def test_calibration_compares_with_the_steps_alone() -> None:
    model = load_cost_model("h100")
    engine = roofline_engine(model.sheet, max_batch=16, max_tokens=100)
    model = replace(model, engines={ENGINE: engine})
    own, foreign = (
        {part.operator: np.sort(part.measured_us) for part in compare_profile(model, profile)}
        for profile in (whole_profile(), foreign_profile())
    )
    assert own.keys() == foreign.keys()
    for operator, measured_us in own.items():
        assert foreign[operator] == pytest.approx(measured_us)
