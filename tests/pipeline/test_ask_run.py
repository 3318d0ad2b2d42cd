"""A run is something one can ask: every command finds in it what it needs."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest

from puzzle_search.errors import InputError
from puzzle_search.pipeline.run import run_recipe
from tests.pico import ROOT, Pico, run_here
from tests.pipeline.test_run import recipe

DOCS = (ROOT / "docs/recipes.md").read_text(encoding="utf-8")
ASKED = [
    line for block in re.findall(r"^```bash\n(.*?)^```$", DOCS, flags=re.M | re.S)
    for line in block.splitlines()
    if not line.startswith(("puzzle-search run", "puzzle-search init"))
]  # fmt: skip


@pytest.fixture(scope="module")
def workplace(pico: Pico, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of the name that the docs use; not to be changed."""
    folder = tmp_path_factory.mktemp("asked")
    solve = {"limits": ['sum(ffn == "no_op") <= 2']}
    run_recipe(recipe(pico, folder, solve=solve), folder / "runs" / "stdlib-lm")
    return folder


@pytest.fixture
def run(workplace: Path) -> Path:
    return workplace / "runs" / "stdlib-lm"


def answer(capsys: pytest.CaptureFixture[str], *words: object) -> dict[str, Any]:
    capsys.readouterr()
    run_here(*words, "--json")
    shown: dict[str, Any] = json.loads(capsys.readouterr().out)
    return shown


@pytest.mark.parametrize("command", ASKED)
def test_every_question_of_the_docs_is_answered(
    command: str,
    workplace: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("plotly", reason="pip install 'puzzle-search[report]'")
    monkeypatch.chdir(workplace)
    words = shlex.split(command)[1:]
    own_layers = {"0,11": "0,2", "2": "1.05"}  # of three layers, and how fast they can be
    run_here(*(own_layers.get(word, word) for word in words))
    assert capsys.readouterr().out.strip()


def test_a_run_asked_again_answers_the_same(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chosen = json.loads((run / "solve" / "solution.json").read_text())
    again = answer(capsys, "solve", run)
    assert again["architecture"] == chosen["architecture"]
    assert again["score"] == pytest.approx(chosen["score"])
    # One thing asked otherwise: the rest stays asked.
    freest = answer(capsys, "solve", run, "--goal", "parameters")
    dropped = [block["ffn"] for block in freest["architecture"]["blocks"]].count("no_op")
    assert dropped <= 2
    wider = answer(capsys, "solve", run, "--goal", "parameters", "--limit", "sum(kv_heads) >= 0")
    assert [block["ffn"] for block in wider["architecture"]["blocks"]].count("no_op") == 3
    by_rate = answer(capsys, "solve", run, "--target-tps", 1)  # in place of the speed-up
    assert by_rate["score"] == 0


def test_every_command_predicts_the_parent_of_the_run(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = {r["what"]: r for r in json.loads((run / "report.json").read_text())["rows"]}
    bench = json.loads((run / "bench" / "bench.json").read_text())["parent"]
    frozen = ("--freeze", "0-2", "--target-tps", 1, "--scenario", "16/16")
    for words in (
        ("solve", run, *frozen),
        ("solve", "--model", run, "--gpu", run, *frozen),
        ("solve", "--model", run, "--gpu", run / "profile", *frozen),
    ):
        [cost] = answer(capsys, *words)["scenarios"]
        if cost["batch"] == bench["batch"]:
            assert cost["ttft_ms"] == pytest.approx(rows["parent TTFT"]["predicted"], rel=1e-3)
            assert cost["tpot_ms"] == pytest.approx(rows["parent TPOT"]["predicted"], rel=1e-3)
        first = answer(capsys, "frontier", run, "--points", 2, "--workers", 1)["points"][0]
        assert first["score"] <= 0
        [explained] = answer(capsys, "explain", run)["scenarios"]
        assert explained["parent"]["tokens_per_second_per_gpu"] == pytest.approx(
            cost["tokens_per_second_per_gpu"], rel=1e-6
        )


def test_a_child_is_named_by_spec_folder_or_run(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    of_run = answer(capsys, "explain", run)
    for name in ("solve/architecture.yaml", "build/child", "build/child/architecture.yaml"):
        assert answer(capsys, "explain", run / name) == of_run
    same = answer(capsys, "compare", run, run / "build" / "child")
    assert same["agreement"] == {"attention": 3, "ffn": 3}
    # Elsewhere, the folder tells its parent's shape, and a device must be named.
    child = tmp_path / "child"
    shutil.copytree(run / "build" / "child", child)
    (child / "architecture.yaml").write_text(
        re.sub(r"(?m)^    model: .*$", "    model: hf", (child / "architecture.yaml").read_text())
    )
    alone = answer(capsys, "explain", child, "--gpu", "l40s")
    assert alone["blocks"][0]["attention"] == of_run["blocks"][0]["attention"]
    assert alone["parameters"] == of_run["parameters"]
    assert alone["score"] is None
    assert (
        answer(capsys, "explain", child, "--gpu", run, "--model", run)["score"] == (of_run["score"])
    )


def test_a_run_that_has_not_come_so_far_says_so(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    begun = tmp_path / "begun"
    shutil.copytree(run, begun)
    for stage in ("solve", "build", "bench", "evaluate", "generate"):
        shutil.rmtree(begun / stage)
    scalar = json.loads((begun / "baseline" / "baseline.json").read_text())["measured"]
    [cost] = answer(capsys, "solve", begun, "--freeze", "0-2", "--target-tps", 1)["scenarios"]
    assert cost["tokens_per_second_per_gpu"] == pytest.approx(scalar["tokens_per_second"], rel=1e-3)
    for words, missing in (
        (("explain", begun), r"no solve/architecture\.yaml yet"),
        (("generate", begun, "--prompt", "a"), r"no build/done\.json yet"),
    ):
        with pytest.raises(InputError, match=missing) as caught:
            run_here(*words)
        assert f"puzzle-search run {begun}/recipe.yaml" in caught.value.remedy
    shutil.rmtree(begun / "score")
    with pytest.raises(InputError, match=r"scores\.csv"):
        run_here("solve", begun)
    (begun / "recipe.yaml").unlink()
    with pytest.raises(InputError, match="an older version"):
        run_here("explain", begun)
    with pytest.raises(InputError, match="is no run directory"):
        run_here("solve", tmp_path)
    with pytest.raises(InputError, match="neither a run directory nor a child's folder"):
        run_here("explain", tmp_path)
