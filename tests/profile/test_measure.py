"""Profiles as they are measured: complete, described, and readable again."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path

import pynvml
import pytest
import torch

from puzzle_search.arch import parse_variant
from puzzle_search.cost import Profile, Scenario, parse_dtype
from puzzle_search.cost.memory import kv_bytes_per_token, weight_bytes
from puzzle_search.errors import InputError, MissingDependencyError
from puzzle_search.profile import ProfileGrid, measure_profile, open_device
from puzzle_search.profile import device as device_module
from tests.pico import Pico

GRID = ProfileGrid(
    batches=(1, 2),
    prefill_tokens=(8,),
    decode_contexts=(9, 16),
    min_rounds=2,
    point_seconds=0.01,
)


def measure(pico: Pico, device: str, dtype: str = "fp32") -> Profile:
    opened = open_device(device)
    return measure_profile(pico.config, pico.space, opened, parse_dtype(dtype), GRID)


@pytest.fixture(scope="module")
def profile(pico: Pico) -> Profile:
    return measure(pico, "cpu")


def test_every_variant_is_measured_once_at_every_point(pico: Pico, profile: Profile) -> None:
    measured = [(r.subblock, r.variant, r.phase, r.batch, r.context) for r in profile.rows]
    points = [(phase, b, n) for b in (1, 2) for phase, n in (("prefill", 8), ("decode", 9))]
    points += [("decode", b, 16) for b in (1, 2)]
    variants = [("attention", v) for v in ("gqa_2", "gqa_1", "linear")]
    variants += [("ffn", v) for v in ("mlp_512", "mlp_256")]
    expected = [(*variant, *point) for variant in variants for point in points]
    # Outside the blocks a decode step costs the same over any context.
    expected += [
        ("outside", part, *p)
        for p in points
        if p[2] != 16
        for part in ("embedding", "head", "step")
    ]
    assert Counter(measured) == Counter(expected)


def test_rows_are_positive_times_in_order(profile: Profile) -> None:
    for row in profile.rows:
        assert 0 < row.latency_us_p10 <= row.latency_us <= row.latency_us_p90
        assert row.tokens == (8 if row.phase == "prefill" else 1)
        assert row.repeats >= 2
        assert row.tp == 1


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_measured_bytes_are_those_of_the_formulas(pico: Pico, dtype: str) -> None:
    small = ProfileGrid(
        batches=(1,), prefill_tokens=(4,), decode_contexts=(5,), min_rounds=1, point_seconds=0.001
    )
    number = parse_dtype(dtype)
    measured = measure_profile(pico.config, pico.space, open_device("cpu"), number, small)
    assert {row.variant for row in measured.memory} == {
        "gqa_2", "gqa_1", "linear", "mlp_512", "mlp_256"
    }  # fmt: skip
    for row in measured.memory:
        assert row.subblock != "outside"
        variant = parse_variant(row.subblock, row.variant)
        assert row.weight_bytes == weight_bytes(variant, pico.config, number, 1)
        assert row.kv_bytes_per_token == kv_bytes_per_token(variant, pico.config, number, 1)


def test_the_sidecar_tells_the_device_and_its_software(profile: Profile) -> None:
    device = profile.sidecar["device"]
    assert device["kind"] == "cpu"
    assert device["name"]
    assert device["threads"] == torch.get_num_threads()
    assert device["torch"] == torch.__version__
    assert profile.sidecar["evidence"] == "measured"
    assert profile.sidecar["dtype"] == "fp32"
    assert profile.sidecar["memory_limit_bytes"] > 0


def test_a_written_profile_reads_back(profile: Profile, tmp_path: Path) -> None:
    profile.write(tmp_path / "profile")
    read = Profile.from_folder(tmp_path / "profile")
    assert read.rows == profile.rows
    assert read.memory == profile.memory
    assert read.sidecar == profile.sidecar
    first = profile.rows[0]
    predicted = read.subblock_us(
        "attention", first.variant, first.phase, batch=first.batch, tokens=first.tokens,
        context=first.context, tp=1,
    )  # fmt: skip
    assert float(predicted) == first.latency_us


def test_a_grid_around_a_scenario_covers_it_and_measures_no_batch_twice() -> None:
    grid = ProfileGrid.around(Scenario(input_len=16, output_len=16), (4, 1, 4))
    assert grid.batches == (1, 4)
    assert grid.prefill_tokens == (16,)
    assert grid.decode_contexts == (17, 24, 32)
    single = ProfileGrid.around(Scenario(input_len=16, output_len=1), (1,))
    assert single.decode_contexts == (17,)


def test_a_prompt_longer_than_the_model_attends_to_is_refused(pico: Pico) -> None:
    grid = ProfileGrid(batches=(1,), prefill_tokens=(300,), decode_contexts=(301,))
    with pytest.raises(InputError, match="256"):
        measure_profile(pico.config, pico.space, open_device("cpu"), parse_dtype("fp32"), grid)


def test_a_dtype_that_cannot_run_is_refused(pico: Pico) -> None:
    with pytest.raises(InputError, match="fp8"):
        measure(pico, "cpu", "fp8")


def test_an_unknown_device_is_refused() -> None:
    with pytest.raises(InputError, match="'tpu'") as caught:
        open_device("tpu")
    assert "cpu or cuda" in caught.value.remedy


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_cuda_without_a_gpu_is_a_missing_dependency() -> None:
    with pytest.raises(MissingDependencyError, match="CUDA") as caught:
        open_device("cuda")
    assert "--device cpu" in caught.value.remedy


def test_without_nvml_the_state_is_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent() -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(pynvml, "nvmlInit", absent)
    state = device_module._nvml_state(0)
    assert list(state) == ["nvml"]
    assert state["nvml"].startswith("unavailable")


def test_the_cpu_clock_runs_in_seconds() -> None:
    clock = open_device("cpu").clock
    start, begun = clock(), time.monotonic()
    time.sleep(0.02)
    assert clock() - start == pytest.approx(time.monotonic() - begun, abs=0.02)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_the_pico_is_profiled_on_a_gpu(pico: Pico, tmp_path: Path) -> None:
    profile = measure(pico, "cuda", "bf16")
    profile.write(tmp_path)
    assert Profile.from_folder(tmp_path).rows == profile.rows
    device = profile.sidecar["device"]
    assert device["kind"] == "cuda"
    assert device["name"] == torch.cuda.get_device_name()
    assert "driver" in device or "nvml" in device
    assert all(row.latency_us > 0 for row in profile.rows)
