"""``status``: of a run that is done, interrupted, at work, or none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from puzzle_search.errors import InputError
from puzzle_search.pipeline.run import run_recipe
from puzzle_search.pipeline.run_directory import RunDirectory
from puzzle_search.pipeline.status import run_status
from tests.pico import Pico, run_here
from tests.pipeline.test_run import STAGES, recipe


@pytest.fixture(scope="module")
def run(pico: Pico, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("status")
    run_recipe(recipe(pico, folder), folder / "a run")
    return folder / "a run"


def test_a_run_that_is_done_says_what_it_gave(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = run_status(run)
    assert found.is_done
    assert not found.running
    gave = {stage.name: stage.gave for stage in found.stages}
    assert list(gave) == STAGES
    assert gave["score"] == "15 replacements"
    quality = json.loads((run / "evaluate" / "quality.json").read_text())["child"]
    assert gave["evaluate"].startswith(f"KL {quality['kl']:.4g}")
    bench = json.loads((run / "bench" / "bench.json").read_text())
    ratio = bench["child"]["tokens_per_second"] / bench["parent"]["tokens_per_second"]
    assert gave["bench"].endswith(f"{ratio:.2f} x the parent")
    run_here("status", run)
    said = capsys.readouterr().out
    assert "9 of 9 stages done" in said
    assert f"next: puzzle-search explain '{run}'" in said


def test_a_run_that_was_interrupted_says_what_is_left(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in STAGES[STAGES.index("library") :]:
        (run / name / "done.json").unlink()
        if name != "library":
            (run / name / "begun.json").unlink()
    found = {stage.name: stage for stage in run_status(run).stages}
    assert found["baseline"].state == "done"
    assert found["library"].state == "interrupted"
    assert found["library"].gave == "15 results so far"
    assert found["score"].state == "left"
    run_here("status", run)
    said = capsys.readouterr().out
    assert "2 of 9 stages done" in said
    assert f"next: puzzle-search run '{run}/recipe.yaml' --run-dir '{run}'" in said
    with RunDirectory(run).held():
        run_here("status", run, "--json")
        shown = json.loads(capsys.readouterr().out)
    assert shown["running"]
    states = {stage["name"]: stage["state"] for stage in shown["stages"]}
    assert states["library"] == "running"
    assert not run_status(run).running


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    (tmp_path / "journal.jsonl").write_text('{"made_from": {}}\n')  # that of a library
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(InputError, match="is no run directory"):
            run_status(folder)
    assert [file.name for file in tmp_path.iterdir()] == ["journal.jsonl"]
