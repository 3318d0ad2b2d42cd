"""Rounds with real damage: the judge against built children, a recipe and the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from puzzle_search.arch import ArchitectureSpec
from puzzle_search.build import build_child
from puzzle_search.checkpoint import load_decoder
from puzzle_search.evaluate import measure_quality
from puzzle_search.pipeline.recipe import read_recipe
from puzzle_search.pipeline.rounds import ScoringJudge
from puzzle_search.pipeline.run import run_recipe
from tests.pico import LENGTH, Pico, run_command
from tests.pipeline.test_run import write_recipe

PAIRS = [("gqa_1", "mlp_512"), ("gqa_2", "mlp_256"), ("linear", "no_op")]
TOKENS = 512


def kl_of_the_built_child(
    pico: Pico, library: Path, pairs: list[tuple[str, str]], folder: Path
) -> float:
    spec = ArchitectureSpec.of("parent", pairs)
    child = build_child(pico.parent, library, spec, folder, dtype="fp32")
    ids = pico.tokens("validation", TOKENS)
    return measure_quality(pico.decoder(), load_decoder(child), ids).kl


def test_the_judge_measures_what_the_built_child_does(
    pico: Pico, pico_library: Path, tmp_path: Path
) -> None:
    ids = pico.tokens("validation", TOKENS)
    judge = ScoringJudge(pico.parent, pico.open_library(pico_library), ids, tmp_path / "judged")
    spec = ArchitectureSpec.of("parent", PAIRS)
    expected = kl_of_the_built_child(pico, pico_library, PAIRS, tmp_path / "child")
    assert judge.measure(spec) == pytest.approx(expected, abs=1e-5)
    back = (1, 1, "gqa_2", "mlp_512")  # the parent's own block
    other = (2, 2, "no_op", "mlp_512")
    found = judge.around(spec, [back, other])
    assert found.keys() == {back, other}
    for replacement, value in found.items():
        pairs = list(PAIRS)
        pairs[replacement[0]] = replacement[2:]
        folder = tmp_path / f"changed-{replacement[0]}"
        expected = kl_of_the_built_child(pico, pico_library, pairs, folder)
        assert value == pytest.approx(expected, abs=1e-5)


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


@pytest.fixture(scope="module")
def asked(pico: Pico, pico_library: Path, tmp_path_factory: pytest.TempPathFactory) -> list[object]:
    """A question of rounds about the pico parent, without the options of rounds."""
    folder = tmp_path_factory.mktemp("asked")
    for name, content in (
        ("config.json", (pico.parent / "config.json").read_text()),
        ("space.yaml", pico.space_file.read_text()),
    ):
        (folder / name).write_text(content)
    scored = run_command(
        "score", "--parent", pico.parent, "--library", pico_library, "--space", pico.space_file,
        "--data", pico.corpus, "--tokens", TOKENS, "--length", LENGTH,
        "--out", folder / "scores.csv",
    )  # fmt: skip
    assert scored.returncode == 0, scored.stderr
    return [
        "solve",
        "--model",
        folder,
        "--gpu",
        "cpu",
        "--scenario",
        "16/16",
        "--max-params",
        0.00023,
    ]


@pytest.mark.parametrize("extra", [[], ["--pairs"]])
def test_rounds_on_the_command_line(
    pico: Pico, pico_library: Path, asked: list[object], extra: list[str], tmp_path: Path
) -> None:
    given = ["--parent", pico.parent, "--library", pico_library, "--data", pico.corpus]
    spec = tmp_path / "child.yaml"
    ended = run_command(
        *asked, *given, "--rounds", 2, "--tokens", TOKENS, "--length", LENGTH, *extra,
        "--out", spec, "--json",
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    answer = json.loads(ended.stdout)
    first, *later = answer["rounds"]
    assert first["number"] == 0
    assert later
    assert answer["params"] <= 230_000
    written = ArchitectureSpec.from_file(spec)
    assert written.solution["rounds"] == answer["rounds"]
    shown = run_command(*asked, *given, "--rounds", 1, "--tokens", TOKENS, "--length", LENGTH)
    assert "one-shot" in shown.stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--rounds", 1], "give --parent, --library and --data"),
        (["--rounds", 1, "--solutions", 2], "rounds improve one answer"),
    ],
)
def test_rounds_that_cannot_be_done(
    asked: list[object], options: list[object], message: str
) -> None:
    ended = run_command(*asked, *options)
    assert ended.returncode == 2
    assert message in ended.stderr
    assert "Traceback" not in ended.stderr
