"""From recipe to measured child, run again, changed, and killed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from puzzle_search.checkpoint import load_decoder
from puzzle_search.errors import InfeasibleError, InputError
from puzzle_search.pipeline.recipes.recipe import Recipe, read_recipe
from puzzle_search.pipeline.run import run_recipe
from puzzle_search.pipeline.run_directory import RunDirectory
from tests.pico import Pico, kill_after, run_command

STAGES = [
    "profile", "baseline", "library", "score", "solve", "build", "evaluate", "bench", "generate"
]  # fmt: skip


def write_recipe(pico: Pico, folder: Path, **changes: dict[str, Any]) -> Path:
    recipe: dict[str, Any] = {
        "format": "puzzle-search.recipe/1",
        "name": "pico",
        "parent": str(pico.parent),
        "space": str(pico.space_file),
        "scenario": "16/16",
        "data": {"source": str(pico.corpus), "length": 32},
        "profile": {"batches": [1, 4], "max_minutes": 0},
        "library": {"tokens": 2048, "calibration_tokens": 1024, "held_out_tokens": 512},
        "score": {"tokens": 2048, "composed": False},
        "solve": {"target_speedup": 1.1, "margin": 0.0},
        "bench": {"iterations": 2},
        "evaluate": {"tokens": 2048},
        "generate": {"prompts": ["abc"], "max_new_tokens": 4},
    }
    for section, values in changes.items():
        recipe[section] |= values
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe))
    return file


def recipe(pico: Pico, folder: Path, **changes: dict[str, Any]) -> Recipe:
    return read_recipe(write_recipe(pico, folder, **changes))


def copied(finished: Path, folder: Path) -> Path:
    """A run directory that a test may spoil."""
    shutil.copytree(finished / "run", folder)
    return folder


@pytest.fixture(scope="module")
def finished(pico: Pico, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run, in ``run`` beside its recipe."""
    folder = tmp_path_factory.mktemp("finished")
    result = run_recipe(recipe(pico, folder), folder / "run")
    assert result.skipped == []
    return folder


def done(run: Path) -> dict[str, str]:
    return {name: (run / name / "done.json").read_text() for name in STAGES}


def test_every_stage_is_done_and_reported(pico: Pico, finished: Path) -> None:
    run = finished / "run"
    assert done(run).keys() == set(STAGES)
    journal = [json.loads(line) for line in (run / "journal.jsonl").read_text().splitlines()]
    assert [(entry["stage"], entry["event"]) for entry in journal] == [
        (stage, event) for stage in STAGES for event in ("begun", "done")
    ]
    report = json.loads((run / "report.json").read_text())
    rows = {row["what"]: row for row in report["rows"]}
    bench = json.loads((run / "bench" / "bench.json").read_text())
    speedup = bench["child"]["tokens_per_second"] / bench["parent"]["tokens_per_second"]
    assert rows["speed-up"]["measured"] == pytest.approx(speedup)
    assert rows["speed-up"]["predicted"] >= 1.1 * (1 - 1e-6)
    quality = json.loads((run / "evaluate" / "quality.json").read_text())
    assert rows["damage (KL to parent)"]["measured"] == quality["child"]["kl"] > 0
    markdown = (run / "report.md").read_text()
    assert all(f"| {what} |" in markdown for what in rows)


def test_the_child_loads_and_is_smaller(pico: Pico, finished: Path) -> None:
    child = load_decoder(finished / "run" / "build" / "child")
    with torch.no_grad():
        logits = child(torch.arange(8)[None])
    assert logits.shape == (1, 8, 300)
    assert logits.isfinite().all()
    sizes = [sum(p.numel() for p in model.parameters()) for model in (child, pico.decoder())]
    assert sizes[0] < sizes[1]


def test_a_second_run_does_nothing_again_and_says_the_same(
    pico: Pico, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("puzzle_search.pipeline.run.load_decoder", None)  # no model is loaded
    run = finished / "run"
    before, report = done(run), (run / "report.json").read_text()
    result = run_recipe(recipe(pico, finished), run)
    assert result.skipped == STAGES
    assert done(run) == before
    assert (run / "report.json").read_text() == report


def test_only_what_depends_on_a_change_is_done_again(pico: Pico, finished: Path) -> None:
    changed = recipe(pico, finished / "changed", evaluate={"tokens": 1024})
    result = run_recipe(changed, finished / "run")
    assert result.skipped == [name for name in STAGES if name != "evaluate"]
    prompts = recipe(
        pico,
        finished / "prompts",
        evaluate={"tokens": 1024},
        generate={"prompts": ["b"]},
    )
    result = run_recipe(prompts, finished / "run")
    assert result.skipped == [name for name in STAGES if name != "generate"]
    # Back to the first recipe for the tests that follow.
    result = run_recipe(recipe(pico, finished), finished / "run")
    assert result.skipped == [name for name in STAGES if name not in {"evaluate", "generate"}]


def test_results_of_what_has_changed_are_removed(
    pico: Pico, finished: Path, tmp_path: Path
) -> None:
    run = copied(finished, tmp_path / "run")
    file = write_recipe(pico, tmp_path / "recipe")
    plain = yaml.safe_load(file.read_text())
    distilled = plain | {"distill": {"tokens": 512, "batch_tokens": 512}}
    file.write_text(yaml.safe_dump(distilled))
    result = run_recipe(read_recipe(file), run)
    assert result.child == run / "distill" / "child"
    assert result.removed == []
    # Without it, what it gave goes too, and all that was measured on it is made anew.
    file.write_text(yaml.safe_dump(plain))
    result = run_recipe(read_recipe(file), run)
    assert result.child == run / "build" / "child"
    assert not (run / "distill").exists()
    assert set(result.removed) == {"distill", "evaluate", "bench", "generate"}


def test_nothing_is_removed_before_its_successor_is_there(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        raise InfeasibleError("no", remedy="ask less")

    def work(folder: Path) -> None:
        (folder / "result").write_text("x")

    def run(solve: int, solving: Any) -> RunDirectory:
        directory = RunDirectory(tmp_path)
        directory.stage("score", 0, [], work)
        directory.stage("solve", solve, ["score"], solving)
        return directory

    directory = run(1, work)
    directory.stage("build", None, ["solve"], work)
    directory.stage("bench", None, ["build"], work)
    with pytest.raises(InfeasibleError):
        run(2, fail)
    assert (tmp_path / "bench" / "result").exists()
    assert run(1, work).removed == []
    assert sorted(run(3, work).removed) == ["bench", "build"]
    assert sorted(f.name for f in tmp_path.iterdir()) == ["journal.jsonl", "score", "solve"]


def test_a_run_goes_on_by_the_recipe_that_it_keeps(finished: Path, tmp_path: Path) -> None:
    run = copied(finished, tmp_path / "run")
    (run / "generate" / "done.json").unlink()
    result = run_recipe(read_recipe(run / "recipe.yaml"), run)
    assert result.skipped == [name for name in STAGES if name != "generate"]


def test_an_unreachable_speedup_says_what_is_reachable(pico: Pico, finished: Path) -> None:
    asked = recipe(pico, finished / "asked", solve={"target_speedup": 1e6})
    with pytest.raises(InfeasibleError, match=r"at most [\d.e+]+ tok/s"):
        run_recipe(asked, finished / "run")
    solve = finished / "run" / "solve"
    assert [file.name for file in solve.iterdir()] == ["begun.json"]
    # The run is not spoilt: with the first ask it ends well.
    result = run_recipe(recipe(pico, finished), finished / "run")
    assert "library" in result.skipped
    assert "solve" not in result.skipped


def test_an_unreachable_speedup_exits_with_2(pico: Pico, finished: Path) -> None:
    file = write_recipe(pico, finished / "exits", solve={"target_speedup": 1e6})
    ended = run_command("run", file, "--run-dir", finished / "run")
    assert ended.returncode == 2
    assert ended.stderr.count("error: ") == 1
    assert "at most" in ended.stderr
    assert "remedy: " in ended.stderr
    assert "Traceback" not in ended.stderr
    assert not (finished / "run" / "solve" / "done.json").exists()


def test_a_run_killed_in_the_library_ends_well(pico: Pico, tmp_path: Path) -> None:
    file, run = write_recipe(pico, tmp_path, library={"tokens": 16384}), tmp_path / "run"
    journal = run / "library" / "journal.jsonl"
    before = kill_after(journal, 3, "run", file, "--run-dir", run)
    assert not (run / "library" / "done.json").exists()
    result = run_recipe(read_recipe(file), run)
    assert result.skipped[:2] == ["profile", "baseline"] or result.skipped == []
    assert done(run).keys() == set(STAGES)
    content = journal.read_bytes()
    assert content.startswith(before[: before.rfind(b"\n") + 1])
    assert content.count(b"\n") == 1 + 15
    assert result.child.is_dir()


def test_a_folder_that_is_no_run_is_left_alone(pico: Pico, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("x")
    with pytest.raises(InputError, match="not a run directory"):
        run_recipe(recipe(pico, tmp_path / "recipe"), tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "x"


@pytest.mark.parametrize(
    ("section", "values", "named"),
    [
        ("solve", {"limits": ["sum("]}, r"limit 'sum\('"),
        ("solve", {"limits": ['sum(attention in "gqa_1") <= 1']}, "write =="),
        ("data", {"length": 1_000_000}, "1000000 tokens exceed"),
        ("score", {"tokens": 31}, "score.tokens: 31 tokens are less than one block"),
        ("generate", {"prompts": ["a" * 400]}, "exceed the 256"),
    ],
)
def test_what_a_late_stage_would_refuse_is_refused_before_the_first(
    pico: Pico, tmp_path: Path, section: str, values: dict[str, Any], named: str
) -> None:
    with pytest.raises(InputError, match=named):
        run_recipe(recipe(pico, tmp_path / "recipe", **{section: values}), tmp_path / "run")
    assert [file.name for file in (tmp_path / "run").iterdir()] == ["journal.jsonl"]


def test_a_second_run_in_one_directory_is_refused(pico: Pico, tmp_path: Path) -> None:
    with (
        RunDirectory(tmp_path / "run").held(),
        pytest.raises(InputError, match=f"{tmp_path / 'run'}: another process is at work"),
    ):
        run_recipe(recipe(pico, tmp_path / "recipe"), tmp_path / "run")


def test_a_stage_begun_with_another_key_is_begun_anew(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "half").write_text("x")
        raise KeyboardInterrupt

    def check(folder: Path) -> None:
        seen.append(sorted(file.name for file in folder.iterdir()))

    seen: list[list[str]] = []
    for settings in (1, 2):
        with pytest.raises(KeyboardInterrupt):
            RunDirectory(tmp_path).stage("library", settings, [], fail)
        assert not (tmp_path / "library" / "done.json").exists()
    RunDirectory(tmp_path).stage("library", 2, [], check)  # continued
    RunDirectory(tmp_path).stage("library", 1, [], check)  # anew
    assert seen == [["begun.json", "half"], ["begun.json"]]
    again = RunDirectory(tmp_path)
    again.stage("library", 1, [], check)
    assert again.skipped == ["library"]
    assert len(seen) == 2
