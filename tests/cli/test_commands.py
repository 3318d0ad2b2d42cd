"""Every command, from its help to its result."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from puzzle_search.arch import ArchitectureSpec
from puzzle_search.cost import Profile
from puzzle_search.solve import ScoreTable
from tests.pico import ROOT, Pico, environment, run_command, run_here

COMMANDS = [
    "solve", "frontier", "explain", "compare", "report", "plot", "run", "profile", "library",
    "score", "build", "evaluate", "bench", "generate", "import", "doctor", "init", "status",
    "version",
]  # fmt: skip
_HELP = """\
import sys
from puzzle_search.cli.main import app
for name in sys.argv[1:]:
    app([name, "--help"], standalone_mode=False)
app(["--help"], standalone_mode=False)
heavy = {"torch", "transformers"} & sys.modules.keys()
assert not heavy, heavy
"""


def test_every_help_is_shown_without_torch() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", _HELP, *COMMANDS],
        capture_output=True,
        text=True,
        env=environment(),
        timeout=60,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    pages = ended.stdout.split("Usage: ")[1:]
    assert len(pages) == len(COMMANDS) + 1
    for name, page in zip(COMMANDS, pages, strict=False):
        assert f" {name} " in page.splitlines()[0]
        assert "--help" in page
    assert all(f" {name} " in pages[-1] for name in COMMANDS)


def test_solve_prints_one_json_object_and_nothing_else() -> None:
    ended = run_command("solve", "--target-tps", 6000, "--json")
    assert ended.returncode == 0, ended.stderr
    answer = json.loads(ended.stdout)
    assert answer["status"] == "optimal"
    assert ended.stdout.count("\n") == 1


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("work")


def write_spec(folder: Path) -> Path:
    pairs = [("gqa_1", "mlp_256"), ("gqa_2", "mlp_512"), ("linear", "no_op")]
    ArchitectureSpec.of("parent", pairs).write(folder / "spec.yaml")
    return folder / "spec.yaml"


def said(*arguments: object) -> str:
    """What a command prints."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        run_here(*arguments)
    return printed.getvalue()


@pytest.fixture(scope="module")
def profiled(pico: Pico, work: Path) -> str:
    return said(
        "profile", "--model", pico.parent, "--space", pico.space_file, "--out", work / "profile",
        "--scenario", "8/8", "--batches", "2,1", "--max-minutes", 0,
    )  # fmt: skip


@pytest.fixture(scope="module")
def scored(pico: Pico, pico_library: Path, work: Path) -> str:
    return said(
        "score", "--parent", pico.parent, "--library", pico_library, "--space", pico.space_file,
        "--data", pico.corpus, "--out", work / "scores.csv", "--tokens", 128, "--length", 32,
        "--no-composed",
    )  # fmt: skip


def test_profile_writes_a_profile(profiled: str, work: Path) -> None:
    assert "written to" in profiled
    assert Profile.from_folder(work / "profile").batches == [1, 2]


def test_score_writes_a_table(scored: str, work: Path) -> None:
    assert "15 replacements scored" in scored
    rows = ScoreTable.from_file(work / "scores.csv").rows
    assert len([row for row in rows if row.metric == "kl"]) == 15


@pytest.fixture(scope="module")
def child(pico: Pico, pico_library: Path, work: Path) -> Path:
    run_here(
        "build", write_spec(work), "--parent", pico.parent, "--library", pico_library,
        "--out", work / "child", "--dtype", "fp32",
    )  # fmt: skip
    return work / "child"


def test_build_writes_a_checkpoint(child: Path) -> None:
    assert {file.name for file in child.iterdir()} >= {
        "architecture.yaml", "config.json", "model.safetensors", "tokenizer.json"
    }  # fmt: skip
    assert not list(child.parent.glob(".*"))


def test_evaluate_compares(pico: Pico, child: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--data", pico.corpus, "--tokens", 512, "--length", 32]
    run_here("evaluate", pico.parent, child, pico.parent, *arguments, "--json")
    other, same = json.loads(capsys.readouterr().out)["children"]
    assert other["kl"] > 1e-3
    assert abs(same["kl"]) < 1e-6
    assert same["agreement"] == 1
    assert same["parent_loss"] == same["child_loss"]
    assert same["accuracy_preserved"] in (1, None)
    table = child.parent / "table.md"
    run_here("evaluate", pico.parent, child, *arguments, "--markdown", table)
    assert capsys.readouterr().out == table.read_text()
    assert table.read_text().startswith("| figure | parent | child | accuracy preserved |\n")


def test_bench_measures_in_turn(
    pico: Pico, child: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    size = ["--input-len", 8, "--output-len", 4, "--batch-size", 2, "--num-iters", 2]
    run_here("bench", pico.parent, child, *size, "--json")
    models = json.loads(capsys.readouterr().out)["models"]
    assert list(models) == [str(pico.parent), str(child)]
    assert models[str(child)]["memory_bytes"] < models[str(pico.parent)]["memory_bytes"]
    run_here("bench", pico.parent, child, *size)
    assert "x the first" in capsys.readouterr().out


def test_generate_completes(child: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = []
    for _ in range(2):
        sampled = ["--temperature", 1, "--seed", 3]
        run_here("generate", child, "--prompt", "abc", "--max-new-tokens", 12, *sampled)
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1]
    assert texts[0].startswith("abc")
    assert len(texts[0]) > len("abc\n")


@pytest.mark.usefixtures("profiled", "scored")
def test_solve_takes_what_the_other_commands_wrote(
    pico: Pico, work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = work / "model"
    model.mkdir()
    (model / "config.json").write_text((pico.parent / "config.json").read_text())
    (model / "space.yaml").write_text(pico.space_file.read_text())
    for name in ("scores.csv", "scores.yaml"):
        (model / name).write_text((work / name).read_text())
    run_here("solve", "--model", model, "--gpu", work / "profile", "--scenario", "8/8", "--json")
    answer = json.loads(capsys.readouterr().out)
    assert answer["status"] == "optimal"
    assert answer["score"] == 0  # nothing asked: the parent itself


# --- solving ------------------------------------------------------------------------------------


def test_solve_writes_a_pool(capsys: pytest.CaptureFixture[str]) -> None:
    run_here("solve", "--target-tps", "6000", "--solutions", "3", "--min-distance", "8", "--json")
    shown = json.loads(capsys.readouterr().out)
    blocks = [answer["architecture"]["blocks"] for answer in shown["solutions"]]
    scores = [answer["score"] for answer in shown["solutions"]]
    assert scores == sorted(scores)
    for first, second in itertools.combinations(blocks, 2):
        assert sum(a != b for a, b in zip(first, second, strict=True)) >= 8


def test_solve_takes_several_scenarios(capsys: pytest.CaptureFixture[str]) -> None:
    run_here(
        "solve", "--target-tps", "5000", "--scenario", "128/1024", "--scenario", "2048/128:tps=300",
        "--margin", "2%", "--limit", 'sum(attention == "no_op") <= 5', "--freeze", "0,79",
        "--portable", "trtllm", "--json",
    )  # fmt: skip
    shown = json.loads(capsys.readouterr().out)
    first, second = shown["scenarios"]
    assert first["tokens_per_second_per_gpu"] >= 5100
    assert second["tokens_per_second_per_gpu"] >= 306
    assert all(s["memory_bytes"] * 1.02 <= s["memory_limit_bytes"] for s in (first, second))
    blocks = shown["architecture"]["blocks"]
    assert sum(block["attention"] == "no_op" for block in blocks) <= 5
    own = {"attention": "gqa_8", "ffn": "mlp_28672"}
    assert blocks[0] == blocks[79] == own


def test_solve_names_the_cheapest_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    run_here("solve", "--target-tps", "6000", "--gpu", "h100=3,abacus=1,H100=2", "--json")
    shown = json.loads(capsys.readouterr().out)
    assert shown["cheapest"] == "H100"
    dear, unknown, cheap = shown["gpus"]
    assert "abacus" in unknown["refusal"]
    speed = cheap["answer"]["scenarios"][0]["tokens_per_second_per_gpu"]
    assert cheap["usd_per_million_tokens"] == pytest.approx(2 / 3600 / speed * 1e6, rel=1e-6)
    assert dear["usd_per_million_tokens"] == pytest.approx(1.5 * cheap["usd_per_million_tokens"])
    run_here("solve", "--target-tps", "6000", "--gpu", "h100=3,H100=2")
    assert "$ / M tokens" in capsys.readouterr().out


UNTIL_PROVEN = ("--workers", "1", "--max-seconds", "600")


def test_the_frontier_is_a_table_a_plot_and_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    words = ("--points", "3", "--from", "3000", "--to", "6000", *UNTIL_PROVEN)
    run_here("frontier", *words, "--out", str(tmp_path), "--json")
    shown = json.loads(capsys.readouterr().out)
    limits = [point["limit"] for point in shown["points"]]
    scores = [point["score"] for point in shown["points"]]
    assert [limits[0], limits[-1]] == [3000, 6000]
    # Half-way in damage, as near as a child comes to it.
    assert scores[1] == pytest.approx((scores[0] + scores[2]) / 2, rel=0.01)
    assert all(p["tokens_per_second_per_gpu"] >= p["limit"] for p in shown["points"])
    assert json.loads((tmp_path / "frontier.json").read_text()) == shown
    assert len((tmp_path / "frontier.csv").read_text().splitlines()) == 4
    assert (tmp_path / "frontier.png").stat().st_size > 10_000
    run_here("frontier", *words)
    assert "3 proven optimal" in capsys.readouterr().out


def test_a_frontier_lies_where_people_choose(capsys: pytest.CaptureFixture[str]) -> None:
    run_here("frontier", "--points", "5", *UNTIL_PROVEN, "--json")
    points = json.loads(capsys.readouterr().out)["points"]
    assert points[0]["score"] == 0
    assert points[0]["params"] == 70_553_706_496
    assert 0.49 < points[-1]["score"] <= 0.5
    assert points[-1]["params"] > 16e9
    assert all(point["status"] == "optimal" for point in points)
    steps = np.diff([point["score"] for point in points])
    assert steps == pytest.approx(np.full(4, 0.125), abs=0.01)


def test_ends_of_a_frontier_in_other_measures(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--points", "2", *UNTIL_PROVEN, "--json")
    run_here("frontier", *words, "--from", "speedup=2", "--to", "parameters=45")
    first, last = json.loads(capsys.readouterr().out)["points"]
    run_here("solve", "--max-params", "45", "--json")
    smaller = json.loads(capsys.readouterr().out)
    run_here("explain", ROOT / "examples/llama-3.1-70b/children/tps-6000.yaml", "--json")
    [scenario] = json.loads(capsys.readouterr().out)["scenarios"]
    parent = scenario["parent"]["tokens_per_second_per_gpu"]
    assert first["limit"] == pytest.approx(2 * parent, rel=1e-6)
    assert last["score"] == pytest.approx(smaller["score"], rel=1e-3)
    run_here("frontier", *words, "--axis", "memory", "--target-speedup", "3", "--to", "70GB")
    found = json.loads(capsys.readouterr().out)
    assert found["points"][0]["limit"] == 70e9
    assert all(p["tokens_per_second_per_gpu"] >= 3 * parent * (1 - 1e-6) for p in found["points"])
    [asked] = found["asked"]["scenarios"]
    assert asked["limits"] == {"speedup": 3}
