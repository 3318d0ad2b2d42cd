"""Rounds with real damage: the judge against built children, a recipe and the command line."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from puzzle_search.arch import ArchitectureSpec, ParentConfig, architecture_parameters
from puzzle_search.build import build_child
from puzzle_search.checkpoint import load_decoder
from puzzle_search.errors import InputError
from puzzle_search.evaluate import Quality, measure_quality
from puzzle_search.pipeline.recipes.recipe import read_recipe
from puzzle_search.pipeline.rounds import ScoringJudge
from puzzle_search.pipeline.run import run_recipe
from puzzle_search.solve import Problem, Solution
from puzzle_search.solve.answers import pool
from puzzle_search.solve.search.search import search
from tests.pico import LENGTH, ROOT, Pico, run_here
from tests.pipeline.test_run import write_recipe

PAIRS = [("gqa_1", "mlp_512"), ("gqa_2", "mlp_256"), ("linear", "no_op")]
TOKENS = 512


def quality_of_the_built_child(
    pico: Pico, library: Path, pairs: list[tuple[str, str]], folder: Path
) -> Quality:
    spec = ArchitectureSpec.of("parent", pairs)
    child = build_child(pico.parent, library, spec, folder, dtype="fp32")
    ids = pico.tokens("validation", TOKENS)
    return measure_quality(pico.decoder(), load_decoder(child), ids)


def test_the_judge_measures_what_the_built_child_does(
    pico: Pico, pico_library: Path, tmp_path: Path
) -> None:
    ids = pico.tokens("validation", TOKENS)
    judge = ScoringJudge(pico.parent, pico.open_library(pico_library), ids, tmp_path / "judged")
    spec = ArchitectureSpec.of("parent", PAIRS)
    expected = quality_of_the_built_child(pico, pico_library, PAIRS, tmp_path / "child").kl
    assert judge.measure(spec) == pytest.approx(expected, abs=1e-5)
    back = (1, 1, "gqa_2", "mlp_512")  # the parent's own block
    other = (2, 2, "no_op", "mlp_512")
    found = judge.around(spec, [back, other])
    assert found.keys() == {back, other}
    for replacement, value in found.items():
        pairs = list(PAIRS)
        pairs[replacement[0]] = replacement[2:]
        folder = tmp_path / f"changed-{replacement[0]}"
        expected = quality_of_the_built_child(pico, pico_library, pairs, folder).kl
        assert value == pytest.approx(expected, abs=1e-5)


def test_a_mix_of_metrics_is_what_the_judge_measures(
    pico: Pico, pico_library: Path, tmp_path: Path
) -> None:
    ids = pico.tokens("validation", TOKENS)
    library = pico.open_library(pico_library)
    judge = ScoringJudge(pico.parent, library, ids, tmp_path / "judged", metric="kl + 10*lm_loss")
    built = quality_of_the_built_child(pico, pico_library, PAIRS, tmp_path / "child")
    expected = built.kl + 10 * (built.child.loss - built.parent.loss)
    spec = ArchitectureSpec.of("parent", PAIRS)
    assert judge.measure(spec) == pytest.approx(expected, abs=1e-4)
    own = (0, 0, *PAIRS[0])
    assert judge.around(spec, [own])[own] == pytest.approx(expected, abs=1e-4)


def test_what_was_measured_is_not_measured_again(
    pico: Pico, pico_library: Path, tmp_path: Path
) -> None:
    ids = pico.tokens("validation", TOKENS)
    spec = ArchitectureSpec.of("parent", PAIRS)
    values = []
    for _ in range(2):
        judge = ScoringJudge(pico.parent, pico.open_library(pico_library), ids, tmp_path)
        values.append(judge.measure(spec))
        [journal] = tmp_path.iterdir()
        assert journal.read_text().count("\n") == 2  # what it was made from, and the child
    assert values[0] == values[1]


def test_a_recipe_with_rounds_and_distillation(pico: Pico, tmp_path: Path) -> None:
    file = write_recipe(pico, tmp_path, solve={"rounds": 2, "target_speedup": 1.3})
    raw = yaml.safe_load(file.read_text())
    file.write_text(yaml.safe_dump(raw | {"distill": {"tokens": 2048, "batch_tokens": 512}}))
    result = run_recipe(read_recipe(file), tmp_path / "run")
    assert result.child == tmp_path / "run" / "distill" / "child"
    spec = ArchitectureSpec.from_file(tmp_path / "run" / "solve" / "architecture.yaml")
    rounds = spec.solution["rounds"]
    assert rounds[0]["number"] == 0
    least = min(rounds, key=lambda done: float(done["measured"]))
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    rows = {row["what"]: row for row in report["rows"]}
    quality = json.loads((tmp_path / "run" / "evaluate" / "quality.json").read_text())
    assert rows["damage (KL to parent)"]["predicted"] == pytest.approx(least["estimate"])
    assert rows["damage (KL to parent)"]["measured"] == quality["built"]["kl"]
    assert rows["damage after distillation"]["measured"] == quality["child"]["kl"]
    assert quality["child"]["kl"] < quality["built"]["kl"]
    assert run_recipe(read_recipe(file), tmp_path / "run").skipped[-1] == "generate"


TEXT = (ROOT / "docs/rounds.md").read_text(encoding="utf-8")
[COMMANDS] = re.findall(r"^```bash\n(.*?)^```$", TEXT, flags=re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def work(pico: Pico, pico_library: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the commands of the docs name."""
    folder = tmp_path_factory.mktemp("work")
    for name, path in (("parent", pico.parent), ("library", pico_library), ("corpus", pico.corpus)):
        (folder / name).symlink_to(path)
    model = folder / "model"
    model.mkdir()
    (model / "config.json").symlink_to(pico.parent / "config.json")
    (model / "space.yaml").symlink_to(pico.space_file)
    run_here(
        "score", "--parent", pico.parent, "--library", pico_library, "--space", pico.space_file,
        "--data", pico.corpus, "--tokens", TOKENS, "--length", LENGTH,
        "--out", model / "scores.csv",
    )  # fmt: skip
    return folder


def run_documented(command: str) -> None:
    name, *words = shlex.split(command)
    assert name == "puzzle-search"
    run_here(*words, "--tokens", TOKENS, "--length", LENGTH)


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS.splitlines())
def test_the_documented_command_runs(
    command: str,
    work: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(work)
    run_documented(command)
    assert "one-shot" in capsys.readouterr().out
    out = Path(re.findall(r"--out (\S+)", command)[0])
    spec = ArchitectureSpec.from_file(out)
    first, *later = spec.solution["rounds"]
    assert first["number"] == 0
    assert later
    assert architecture_parameters(spec, ParentConfig.from_file("parent")) <= 230_000
    assert list(out.with_suffix(".rounds").glob("*.jsonl"))
    run_documented(f"{command} --json")
    again = json.loads(capsys.readouterr().out)
    names = ("number", "estimate", "measured", "scored", "children")
    assert [[r[n] for n in names] for r in again["rounds"]] == [
        [r[n] for n in names] for r in spec.solution["rounds"]
    ]


def test_rounds_take_the_metric_and_the_back_end_that_are_asked(
    work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(work)
    used: list[str] = []

    def search_noting(problem: Problem, **options: Any) -> Solution | None:
        used.append(options["backend"])
        return search(problem, **options)

    monkeypatch.setattr(pool, "search", search_noting)
    command = COMMANDS.splitlines()[0].replace("--rounds 4", "--rounds 1")
    command = command.replace("child.yaml", "mixed.yaml")
    run_documented(f"{command} --metric 'kl + 0.1*lm_loss' --backend highs --json")
    rounds = json.loads(capsys.readouterr().out)["rounds"]
    assert set(used) == {"highs"}
    [journal, *_] = (work / "mixed.rounds").glob("*.jsonl")
    assert json.loads(journal.read_text().splitlines()[0])["made_from"]["metrics"] == [
        "kl", "lm_loss"
    ]  # fmt: skip
    assert rounds[0]["measured"] > 0


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("refine --parent parent --library library --data corpus", "not the model"),
        ("refine --gpu l40s,h100 --parent parent --library library --data corpus", "'l40s,h100'"),
    ],
)
def test_rounds_that_cannot_be_done(
    work: Path, command: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(work)
    with pytest.raises(InputError, match=message):
        run_here(*shlex.split(command))
