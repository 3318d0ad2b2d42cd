"""Profiles as they are measured: complete, described, and readable again."""

from __future__ import annotations

import dataclasses
import pickle
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from puzzle_search.arch import parse_variant
from puzzle_search.cost import Profile, Scenario, parse_dtype
from puzzle_search.cost.memory import kv_bytes_per_token, weight_bytes
from puzzle_search.errors import InputError, MissingDependencyError
from puzzle_search.executor import InProcess
from puzzle_search.files import Journal
from puzzle_search.profile import ProfileGrid, measure_profile, open_device
from puzzle_search.profile.points import subjects
from puzzle_search.profile.points.point import Point
from puzzle_search.profile.sampling import session
from puzzle_search.runtime.linear import ServingLinear
from tests.cost.steps import prefill_us, step
from tests.pico import Pico
from tests.profile.small import GRID, measure

VARIANTS = [("attention", v) for v in ("gqa_2", "gqa_1", "linear")]
VARIANTS += [("ffn", v) for v in ("mlp_512", "mlp_256")]


@pytest.fixture(scope="module")
def profile(pico: Pico) -> Profile:
    return measure(pico)


def test_every_variant_is_measured_once_at_every_point(profile: Profile) -> None:
    measured = [
        (r.subblock, r.variant, r.phase, r.batch, r.tokens, r.context) for r in profile.rows
    ]
    attends = [("decode", b, 1, c) for b in (1, 2) for c in (9, 16)]
    attends += [("prefill", b, 8, 8) for b in (1, 2)]
    # What works token by token is measured by tokens: one or two in decode, 8 and 16 of prompts.
    by_tokens = [("decode", b, 1, 1) for b in (1, 2)]
    by_tokens += [("prefill", 1, t, t) for t in (8, 16)]
    by_batch = [("decode", b, 1, 1) for b in (1, 2)]
    steps = by_batch + [("prefill", b, 8, 8) for b in (1, 2)]
    expected = [
        (*variant, *point)
        for variant in VARIANTS
        for point in (attends if variant[1].startswith("gqa") else by_tokens)
    ]
    expected += [("outside", "embedding", *point) for point in by_tokens]
    expected += [("outside", "head", *point) for point in by_batch]
    expected += [("outside", "step", *point) for point in steps]
    assert Counter(measured) == Counter(expected)


def test_rows_are_positive_times_in_order_of_known_groups(profile: Profile) -> None:
    for row in profile.rows:
        assert 0 < row.latency_us_p10 <= row.latency_us <= row.latency_us_p90
        spread = (row.latency_us_p90 - row.latency_us_p10) / row.latency_us
        if row.variant != "step":  # a difference of two
            assert row.steady == (spread <= 0.02) or spread == pytest.approx(0.02, abs=1e-3)
        assert row.repeats >= 7
        assert row.tp == 1
        assert row.group in {group.group for group in profile.groups}
    assert all(group.seconds > 0 for group in profile.groups)


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp8"])
def test_measured_bytes_are_those_of_the_formulas(pico: Pico, dtype: str) -> None:
    grid = dataclasses.replace(GRID, batches=(1,), contexts=(5,), prompts=(4,), tp=(1, 2))
    number = parse_dtype(dtype)
    measured = measure(pico, grid, dtype=dtype)
    blocks = [row for row in measured.memory if row.subblock != "outside"]
    expected = [(tp, *variant) for tp in (1, 2) for variant in VARIANTS]
    assert [(row.tp, row.subblock, row.variant) for row in blocks] == expected
    for row in blocks:
        assert row.subblock != "outside"
        variant = parse_variant(row.subblock, row.variant)
        assert row.weight_bytes == weight_bytes(variant, pico.config, number, row.tp)
        assert row.kv_bytes_per_token == kv_bytes_per_token(variant, pico.config, number, row.tp)
        assert row.workspace_rows == 4
        # At least the norm of each row, and what the subblock adds to it.
        assert row.workspace_bytes >= 4 * 64 * (1 + number.vector_bytes)


def test_bytes_that_differ_from_the_formula_are_an_error(
    pico: Pico, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subjects, "storage_bytes", lambda tensors: 1)
    with pytest.raises(InputError, match="weight_bytes of attention gqa_2, tp 1 is 1, by its"):
        measure(pico)


def test_the_sidecar_tells_the_device_its_software_and_its_ceilings(
    pico: Pico, profile: Profile
) -> None:
    device = profile.sidecar["device"]
    assert device["kind"] == "cpu"
    assert device["name"]
    assert device["threads"] == torch.get_num_threads()
    assert device["torch"] == torch.__version__
    assert profile.sidecar["evidence"] == "measured"
    assert profile.sidecar["dtype"] == "fp32"
    assert profile.sidecar["memory_limit_bytes"] > 0
    assert profile.sidecar["skipped"] == []
    assert profile.sidecar["ceilings"]["copy_bytes_per_second"] > 1e8
    assert profile.sidecar["ceilings"]["matmul_flops_per_second"]["fp32"] > 1e8
    assert profile.config == pico.config


def test_a_written_profile_reads_back(profile: Profile, tmp_path: Path) -> None:
    profile.write(tmp_path / "profile")
    read = Profile.from_folder(tmp_path / "profile")
    assert read.rows == profile.rows
    assert read.memory == profile.memory
    assert read.groups == profile.groups
    assert read.sidecar == profile.sidecar
    first = profile.rows[0]
    predicted = read.subblock_us(
        "attention", first.variant, step(first.phase, batch=first.batch, tokens=first.tokens,
        context=first.context, tp=1,))  # fmt: skip
    assert float(predicted) == first.latency_us


def test_a_prompt_that_is_cut_costs_the_sum_of_its_chunks(pico: Pico) -> None:
    grid = dataclasses.replace(GRID, prompts=(40,), contexts=(41,), chunk_tokens=16)
    profile = measure(pico, grid)
    us = {
        (row.tokens, row.context): row.latency_us
        for row in profile.rows
        if (row.variant, row.phase, row.batch) == ("gqa_2", "prefill", 1)
    }
    predicted = prefill_us(profile, "attention", "gqa_2", batch=2, tokens=40, chunk_tokens=16)
    assert float(predicted) == pytest.approx(2 * (us[16, 16] + us[16, 32] + us[8, 40]))
    outside = prefill_us(profile, "outside", "", batch=2, tokens=40, chunk_tokens=16)
    assert np.isfinite(outside)


def test_an_adaptive_grid_covers_what_lies_between_even_without_time(pico: Pico) -> None:
    scenario = Scenario(input_len=16, output_len=16)
    profile = measure(pico, ProfileGrid.around(scenario, batches=(1, 8)))
    for batch in range(1, 9):
        for subblock, variant in VARIANTS:
            for phase, tokens, context in (("prefill", 16, 16), ("decode", 1, 25)):
                us = profile.subblock_us(
                    subblock,
                    variant,
                    step(phase, batch=batch, tokens=tokens, context=context, tp=1),
                )
                assert us > 0
        assert profile.outside_us(step("prefill", batch=batch, tokens=16, tp=1)) > 0
    assert profile.sidecar["interpolation"] == {
        "points": 0, "median": None, "p90": None, "worst": None
    }  # fmt: skip


def test_with_time_held_out_points_are_checked(pico: Pico, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "_RUN_SECONDS", 0.0)
    scenario = Scenario(input_len=16, output_len=16)
    grid = ProfileGrid.around(scenario, batches=(1, 8))
    checked = measure(pico, grid, max_minutes=60).sidecar["interpolation"]
    assert checked["points"] > 0
    assert 0 <= checked["median"] <= checked["p90"] <= checked["worst"]


def test_numbers_that_are_not_finite_are_an_error(
    pico: Pico, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ServingLinear, "randomise", lambda self: self.weight.fill_(torch.nan))
    with pytest.raises(InputError, match="not finite"):
        measure(pico)


def test_a_point_that_does_not_fit_is_skipped_and_said_so(
    pico: Pico, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = subjects.SubblockStack.run

    def tight(self: subjects.SubblockStack, part: str, point: Point, pool: object) -> object:
        if point.batch * point.context > 18 and point.phase == "decode":
            raise torch.OutOfMemoryError("CUDA out of memory")
        return run(self, part, point, pool)

    monkeypatch.setattr(subjects.SubblockStack, "run", tight)
    profile = measure(pico)
    decode = {(r.variant, r.batch, r.context) for r in profile.rows if r.phase == "decode"}
    assert ("gqa_2", 2, 9) in decode
    assert ("gqa_2", 2, 16) not in decode
    assert len(profile.sidecar["skipped"]) == 2  # of two variants
    assert all(entry["why"] == "out of memory" for entry in profile.sidecar["skipped"])
    said = capsys.readouterr().err
    assert said.count("out of memory, skipped") == 2
    assert "gqa_2, tp 1: decode, batch 2, 1 tokens, context 16" in said
    profile.write(tmp_path / "profile")
    assert Profile.from_folder(tmp_path / "profile").sidecar["skipped"]


def test_weights_that_do_not_fit_are_skipped_and_said_so(
    pico: Pico, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make = subjects.SubblockStack.open

    def tight(self: subjects.SubblockStack) -> None:
        if self.name == "mlp_512, tp 1":
            raise torch.OutOfMemoryError("CUDA out of memory")
        make(self)

    monkeypatch.setattr(subjects.SubblockStack, "open", tight)
    profile = measure(pico)
    assert "mlp_512" not in {row.variant for row in [*profile.rows, *profile.memory]}
    assert "mlp_256" in {row.variant for row in profile.rows}
    assert "out of memory, skipped: mlp_512, tp 1" in capsys.readouterr().err


def test_what_was_measured_is_not_measured_again(
    pico: Pico, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(tmp_path / "profile.journal.jsonl")
    before = measure(pico, journal=journal)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr(session, "time_in_turn", refuse)
    again = measure(pico, journal=journal)
    assert again.rows == before.rows
    assert again.groups == before.groups
    with pytest.raises(InputError, match="dtype differ"):
        measure(pico, journal=journal, dtype="bf16")


def test_stacks_that_do_not_fit_together_are_measured_one_after_the_other(pico: Pico) -> None:
    device = dataclasses.replace(open_device("cpu"), memory_limit_bytes=1_000_000)
    number = parse_dtype("fp32")
    profile = measure_profile(pico.config, pico.space, device, number, GRID, max_minutes=0)
    assert {row.variant for row in profile.rows} >= {variant for _, variant in VARIANTS}
    assert len(profile.memory) == len(VARIANTS) + 2


def test_a_worker_on_another_kind_of_device_is_refused(pico: Pico) -> None:
    device = open_device("cpu")
    elsewhere = dataclasses.replace(device, identity=device.identity | {"name": "another"})

    class Elsewhere(InProcess):
        """As a process would: the device is opened anew there."""

        def run(self, work: Any, jobs: Any) -> Any:
            return super().run(work, [pickle.loads(pickle.dumps(job)) for job in jobs])

    number = parse_dtype("fp32")
    with pytest.raises(InputError, match=r"its name is '.*', not 'another'"):
        measure_profile(
            pico.config, pico.space, elsewhere, number, GRID, max_minutes=0, executor=Elsewhere()
        )


def test_a_prompt_longer_than_the_model_attends_to_is_refused(pico: Pico) -> None:
    grid = ProfileGrid(batches=(1,), prompts=(300,), contexts=(301,))
    with pytest.raises(InputError, match="256"):
        measure(pico, grid)


def test_an_unknown_device_is_refused() -> None:
    with pytest.raises(InputError, match="'tpu'") as caught:
        open_device("tpu")
    assert "cpu or cuda" in caught.value.remedy


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_cuda_without_a_gpu_is_a_missing_dependency() -> None:
    with pytest.raises(MissingDependencyError, match="CUDA") as caught:
        open_device("cuda")
    assert "--device cpu" in caught.value.remedy


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_the_pico_is_profiled_on_a_gpu(pico: Pico, tmp_path: Path) -> None:
    grid = ProfileGrid.around(Scenario(input_len=16, output_len=16), batches=(1, 8), tp=(1, 2))
    profile = measure(pico, grid, device="cuda", dtype="fp8")
    profile.write(tmp_path)
    assert Profile.from_folder(tmp_path).rows == profile.rows
    device = profile.sidecar["device"]
    assert device["kind"] == "cuda"
    assert device["name"] == torch.cuda.get_device_name()
    assert "driver" in device or "nvml" in device
    assert all(row.latency_us > 0 for row in profile.rows)
