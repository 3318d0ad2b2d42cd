"""The GPU check: its dry run on a CPU, and what its report makes of what was measured."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from puzzle_search.arch import ArchitectureSpec
from puzzle_search.cost import Scenario
from tests.cost.synthetic_profile import whole_profile

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def report() -> ModuleType:
    sys.path.insert(0, str(ROOT / "experiments" / "gpu"))
    try:
        import gpu  # noqa: F401 (these are found by name later)
        import gpu_models  # noqa: F401
        import gpu_report
    finally:
        sys.path.remove(str(ROOT / "experiments" / "gpu"))
    return gpu_report


@pytest.fixture(scope="module")
def setting(report: ModuleType) -> Any:
    import gpu_setting

    return gpu_setting.hopper()


def run_check(work: Path, *arguments: str) -> dict[str, Any]:
    done = subprocess.run(
        ["bash", "bench/gpu.sh", "--device", "cpu", "--pico", *arguments],
        cwd=ROOT,
        env=os.environ | {"PYTHON": sys.executable, "WORK": str(work), "OUT": str(work / "out")},
        capture_output=True,
        text=True,
        check=False,
    )
    log = work / "out" / "log.txt"
    assert done.returncode == 0, done.stderr + (log.read_text() if log.exists() else "")
    summary: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return summary


@pytest.mark.slow
def test_every_stage_runs_dry(tmp_path: Path) -> None:
    summary = run_check(tmp_path, "--minutes", "20")
    out = tmp_path / "out"
    log = (out / "log.txt").read_text()
    assert all(state.startswith("done") for state in summary["stages"].values()), log
    assert summary["is_dry_run"]
    assert summary["evidence"] == "measured"
    reached = {line["what"]: line["reached"] for line in summary["demands"]}
    unmeasured = [what for what, found in reached.items() if found == "not yet measured"]
    assert unmeasured == ["parent against TensorRT-LLM 0.17 on an H200 (published)"]
    assert summary["small"] is not None
    kept = sorted(path.name for path in out.iterdir())
    assert kept == [
        "log.txt", "models.jsonl", "models.png", "profile.tar.gz", "results.json", "table.md",
    ]  # fmt: skip
    with tarfile.open(out / "profile.tar.gz") as archive:
        assert "profile/profile.yaml" in archive.getnames()
    table = (out / "table.md").read_text()
    assert all(f"| {what} |" in table for what in reached)
    # A second time nothing is measured again.
    before = (tmp_path / "models.jsonl").read_bytes()
    assert run_check(tmp_path, "--stages", "models")["demands"] == summary["demands"]
    assert (tmp_path / "models.jsonl").read_bytes() == before


def test_without_time_nothing_runs_and_nothing_is_claimed(tmp_path: Path) -> None:
    summary = run_check(tmp_path, "--minutes", "0")
    assert set(summary["stages"].values()) == {"not run: no time left"}
    assert {line["reached"] for line in summary["demands"]} == {"not yet measured"}
    assert {line["met"] for line in summary["demands"]} == {None}


def test_the_tables_come_first_where_scores_ship(report: ModuleType, tmp_path: Path) -> None:
    import gpu

    order = {
        device: gpu.Check(
            device=device, is_pico=False, out=tmp_path, work=tmp_path, minutes=1
        ).stages
        for device in ("cuda", "cpu")
    }
    assert order["cuda"] == ["profile", "models", "headline", "tests", "small"]
    assert order["cpu"] == ["tests", "profile", "models", "small", "headline"]


def by_what(lines: list[Any]) -> dict[str, Any]:
    return {line.what: line for line in lines}


def run_entry(predicted: float, measured: float) -> dict[str, float]:
    return {"predicted_tps": predicted, "measured_tps": measured}


def test_errors_of_predictions(report: ModuleType, setting: Any) -> None:
    what = "predicted against measured tok/s"
    entries = {f"m{i} 1/1": run_entry(100 * (1 + off), 100) for i, off in enumerate((0.01, -0.04))}
    entries["m2 1/1"] = run_entry(92, 100)
    line = by_what(report.demands(setting, entries, errors=(0.05, 0.1)))[what]
    assert line.met
    assert line.reached.startswith("median 4.0%, worst -8.0% (m2 1/1)")
    entries["m3 1/1"] = run_entry(111, 100)
    assert not by_what(report.demands(setting, entries, errors=(0.05, 0.1)))[what].met
    entries["m3 1/1"] = run_entry(107, 100)
    assert not by_what(report.demands(setting, entries, errors=(0.05, 0.1)))[what].met


def test_one_scalar_makes_the_parent_right(report: ModuleType, setting: Any) -> None:
    what = "predicted against measured tok/s, one scalar"
    entries = {"parent 128/1024": run_entry(80, 100), "nemotron-51b 128/128": run_entry(168, 200)}
    line = by_what(report.demands(setting, entries, errors=(0.05, 0.1)))[what]
    assert line.reached.startswith("median 2.5%, worst +5.0% (nemotron-51b 128/128)")
    assert line.reached.endswith("x 0.800")


def test_figures_are_medians_over_turns(report: ModuleType) -> None:
    import gpu_models

    turns = [{"key": "a 1/1", "turn": n, "batch": 4, "measured_tps": v} for n, v in
             enumerate((3.0, 9.0, 4.0))]  # fmt: skip
    entries = gpu_models.medians([*turns, {"key": "a 1/1", "turn": 3, "skipped": "no memory"}])
    assert entries["a 1/1"]["measured_tps"] == 4.0
    assert entries["a 1/1"]["batch"] == 4
    assert entries["a 1/1"]["spread"] == 6 / 4


def test_batches_that_the_profile_does_not_cover_are_not_asked(
    report: ModuleType, setting: Any, tmp_path: Path
) -> None:
    import gpu_prediction
    import gpu_setting

    whole = whole_profile()
    whole.rows = [row for row in whole.rows if row.batch < 16 or row.context < 100]
    whole.write(tmp_path)
    ours = dataclasses.replace(gpu_setting.pico(), config=whole.config, dtype="bf16")
    prediction = gpu_prediction.Prediction(ours, tmp_path)
    spec = ArchitectureSpec.identity(whole.config)
    batches = [
        {point.batch for point in prediction.table(spec, scenario, sizes).points}
        for sizes in (prediction.target.batches,)
        for scenario in (Scenario.parse("10/90"), Scenario.parse("10/290"))
    ]
    assert [max(sizes) for sizes in batches] == [16, 4]


def test_the_ratio_is_of_the_rival_over_the_parent(report: ModuleType, setting: Any) -> None:
    entries = {
        "parent 128/128": run_entry(104, 100),
        "nemotron-51b 128/128": run_entry(214, 200),
        "nemotron-51b 128/1024": run_entry(1, 5),  # without its parent it counts for nothing
    }
    line = by_what(report.demands(setting, entries, errors=(1, 1)))[
        "speed-up of nemotron-51b over its parent"
    ]
    assert line.met
    assert line.reached == "128/128 2.00x (predicted 2.06x)"


def test_steps_against_floor_and_parts(report: ModuleType, setting: Any) -> None:
    entries = {
        "parent step 1": {"floor_ms": 10.0, "measured_ms": 12.0, "predicted_ms": 12.3},
        "parent step 16": {"floor_ms": 10.0, "measured_ms": 12.6, "predicted_ms": 12.6},
        "parent step 64": {"skipped": "out of memory"},
    }
    lines = by_what(report.demands(setting, entries, errors=(1, 1)))
    floor = lines["decode step over its floor"]
    assert not floor.met
    assert floor.reached == "median 1.230, worst 1.260 (parent step 16)"
    assert lines["sum of profiled parts against the whole decode step"].met


def test_published_throughput_and_the_answer(report: ModuleType, setting: Any) -> None:
    answer = run_entry(1, 101.0) | {"damage": 0.2, "rival_damage": 0.3, "status": "optimal"}
    entries = {
        "parent 128/128": run_entry(1, 0.9 * 4020.75),
        "parent 2048/128": run_entry(1, 0.79 * 465.99),
        "answer to nemotron-51b 128/1024": answer | {"rival_measured_tps": 100.0},
    }
    lines = by_what(report.demands(setting, entries, errors=(1, 1)))
    published = lines["parent against TensorRT-LLM 0.17 on an H200 (published)"]
    assert published.reached == "128/128 0.90x; 2048/128 0.79x"
    assert not published.met
    assert lines["solver's answer against nemotron-51b"].met
    assert lines["solver's answer against nemotron-49b"].reached == "not yet measured"


def test_the_models_of_the_check(setting: Any) -> None:
    assert list(setting.specs) == ["parent", "nemotron-51b", "tps-6000", "nemotron-49b", "tps-9568"]
    for spec in setting.specs.values():
        spec.check_fits(setting.config)
    measured = setting.measured_space
    assert "mlp_17920" in measured.all_variants("ffn")  # of Nemotron-49B alone
    assert len(measured.all_variants("attention")) == 6
