"""A user's mistake: exit code 2, one message with file and remedy, nothing half-written."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from puzzle_search.cli.main import main
from tests.imports.nvlabs import library, write_library
from tests.imports.puzzletron import stats, write_puzzle
from tests.pico import ROOT, Pico, run_command

EXAMPLE = ROOT / "examples" / "llama-3.1-70b"


def refuse(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: object
) -> str:
    """What ``main`` prints when it refuses; in this process, since torch is slow to start."""
    monkeypatch.setattr(sys, "argv", ["puzzle-search", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    shown = capsys.readouterr()
    assert ended.value.code == 2
    assert shown.out == ""
    return checked(shown.err)


def checked(stderr: str) -> str:
    assert stderr.count("error: ") == 1
    assert stderr.count("\n  remedy: ") == 1
    assert "Traceback" not in stderr
    return stderr


def broken_parent(pico: Pico, folder: Path) -> Path:
    shutil.copytree(pico.parent, folder)
    return folder


def library_arguments(pico: Pico, out: Path, **changes: object) -> list[object]:
    options: dict[str, object] = {
        "parent": pico.parent,
        "space": pico.space_file,
        "data": pico.corpus,
        "out": out,
        "tokens": 0,
        "held-out-tokens": 64,
        "length": 32,
    }
    return ["library", *(part for k, v in (options | changes).items() for part in (f"--{k}", v))]


def test_a_missing_recipe(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    message = refuse(monkeypatch, capsys, "run", tmp_path / "none.yaml")
    assert "none.yaml does not exist" in message


def test_a_score_that_is_nan(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(EXAMPLE, folder)
    lines = (folder / "scores.csv").read_text().splitlines()
    cells = lines[6].split(",")
    cells[5] = "nan"
    lines[6] = ",".join(cells)
    (folder / "scores.csv").write_text("\n".join(lines) + "\n")
    out = tmp_path / "out.yaml"
    words = ["solve", "--model", folder, "--out", out, "--target-tps", 5000]
    assert "scores.csv, row 7: value is 'nan'" in refuse(monkeypatch, capsys, *words)
    assert not out.exists()


def test_an_impossible_target(tmp_path: Path) -> None:
    """As users run it: in a process of its own."""
    out = tmp_path / "out.yaml"
    ended = run_command("solve", "--target-tps", 1e9, "--out", out, "--json")
    assert ended.returncode == 2
    assert "at most" in checked(ended.stderr)
    assert ended.stdout == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--gpu", "abacus"], "abacus"),
        (["--engine", "abacus"], "abacus"),
        (["--model", "gpt-9"], "gpt-9"),
        (["--tp", "3"], "'3'"),
        (["--scenario", "128x8"], "128x8"),
        (["--target-tps", "-5"], "-5"),
        (["--target-tps", "nan"], "nan"),
        (["--max-params", "nan"], "nan"),
        (["--max-params", "inf"], "inf"),
        (["--metric", "smell"], "smell"),
    ],
)
def test_unknown_names_and_values_in_solve(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    named: str,
) -> None:
    target = [] if "--target-tps" in arguments else ["--target-tps", "5000"]
    assert named in refuse(monkeypatch, capsys, "solve", *target, *arguments)


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("format: puzzle-search.recipe/1\nname: [\n", "not valid YAML"),
        ("format: puzzle-search.recipe/1\nname: a\nname: b\n", "given twice"),
        ("format: puzzle-search.recipe/2\n", "puzzle-search.recipe/2"),
        ("format: puzzle-search.recipe/1\nparrent: a\n", "recipe.yaml"),
    ],
)
def test_a_typo_in_a_recipe(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    content: str,
    named: str,
) -> None:
    file, run = tmp_path / "recipe.yaml", tmp_path / "run"
    file.write_text(content)
    message = refuse(monkeypatch, capsys, "run", file, "--run-dir", run)
    assert str(file) in message
    assert named in message
    assert not run.exists()


def test_a_typo_in_a_search_space(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    pico: Pico,
    tmp_path: Path,
) -> None:
    space, out = tmp_path / "space.yaml", tmp_path / "library"
    for old, new in (("gqa_1", "gqa_l"), ("ffn:", "fnn:"), ("mlp_256", "mlp_1024")):
        space.write_text(pico.space_file.read_text().replace(old, new))
        arguments = library_arguments(pico, out, space=space)
        assert str(space) in refuse(monkeypatch, capsys, *arguments)
        assert not out.exists()


def test_a_typo_in_a_spec(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    pico: Pico,
    pico_library: Path,
    tmp_path: Path,
) -> None:
    spec, out = tmp_path / "spec.yaml", tmp_path / "child"
    spec.write_text(
        "format: puzzle-search.architecture/1\nparent: parent\nblocks:\n"
        "- {attention: gqa_2, fnn: mlp_512}\n"
    )
    arguments = ["--parent", pico.parent, "--library", pico_library, "--out", out]
    assert f"{spec}, block 0" in refuse(monkeypatch, capsys, "build", spec, *arguments)
    assert [file.name for file in tmp_path.iterdir()] == ["spec.yaml"]


def test_a_truncated_checkpoint(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    pico: Pico,
    tmp_path: Path,
) -> None:
    parent, out = broken_parent(pico, tmp_path / "parent"), tmp_path / "library"
    weights = parent / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    message = refuse(monkeypatch, capsys, *library_arguments(pico, out, parent=parent))
    assert f"{weights} is truncated" in message
    assert not out.exists()


def test_a_tensor_of_another_shape(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    pico: Pico,
    tmp_path: Path,
) -> None:
    parent, out = broken_parent(pico, tmp_path / "parent"), tmp_path / "library"
    name = "model.layers.2.mlp.up_proj.weight"
    tensors = load_file(parent / "model.safetensors")
    tensors[name] = torch.zeros(512, 63)
    save_file(tensors, parent / "model.safetensors")
    message = refuse(monkeypatch, capsys, *library_arguments(pico, out, parent=parent))
    assert str(parent / "model.safetensors") in message
    assert f"{name} has shape (512, 63), expected (512, 64)" in message
    assert not out.exists()


def test_missing_files(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    pico: Pico,
    tmp_path: Path,
) -> None:
    missing, out = tmp_path / "missing", tmp_path / "library"
    for option in ("parent", "space", "data"):
        arguments = library_arguments(pico, out, **{option: missing})
        assert str(missing) in refuse(monkeypatch, capsys, *arguments)
        assert not out.exists()
    score = ["score", "--parent", pico.parent, "--library", missing, "--space", pico.space_file]
    score += ["--data", pico.corpus, "--out", tmp_path / "scores.csv", "--length", 32]
    message = refuse(monkeypatch, capsys, *score)
    assert str(missing / "library.json") in message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("initialiser", "men_pool", "'men_pool' is not an initialiser"),
        ("max-memory", "plenty", "'plenty' is no amount of memory"),
        ("max-memory", "1MiB", "1 MiB of memory are too few"),
    ],
)
def test_options_of_the_library_that_cannot_be_used(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    pico: Pico,
    tmp_path: Path,
    option: str,
    value: str,
    expected: str,
) -> None:
    arguments = library_arguments(pico, tmp_path / "library", **{option: value})
    assert expected in refuse(monkeypatch, capsys, *arguments)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_there(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], pico: Pico
) -> None:
    assert "CUDA" in refuse(monkeypatch, capsys, "bench", pico.parent, "--device", "cuda")


def test_an_output_path_below_a_file(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    pico: Pico,
    tmp_path: Path,
) -> None:
    (tmp_path / "file").write_text("x")
    arguments = library_arguments(pico, tmp_path / "file" / "library")
    assert str(tmp_path / "file") in refuse(monkeypatch, capsys, *arguments)
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


def test_models_that_cannot_be_compared(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    pico: Pico,
    tmp_path: Path,
) -> None:
    other = broken_parent(pico, tmp_path / "other")
    config = (other / "config.json").read_text().replace('"vocab_size": 300', '"vocab_size": 200')
    (other / "config.json").write_text(config)
    tensors = load_file(other / "model.safetensors")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        tensors[name] = tensors[name][:200].clone()
    save_file(tensors, other / "model.safetensors")
    arguments = ["evaluate", pico.parent, other, "--data", pico.corpus, "--length", 32]
    message = refuse(monkeypatch, capsys, *arguments)
    assert "300 tokens" in message
    assert "200" in message


def test_tables_that_cannot_be_imported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    run = write_puzzle(tmp_path / "run", [stats(4), stats(8)])
    message = refuse(monkeypatch, capsys, "import", "puzzletron", run, "--out", out)
    assert "subblock_stats.json: 2 of 2 measurements fit" in message
    wrong = ["import", "puzzletron", run, "--out", out, "--where", "gpu"]
    assert "'gpu' is not NAME=VALUE" in refuse(monkeypatch, capsys, *wrong)
    blocks = library()
    del blocks["layer_2"]
    folder = write_library(tmp_path / "toy", blocks | {"layer_3": blocks["layer_1"]})
    message = refuse(monkeypatch, capsys, "import", "nvlabs", folder, "--out", out)
    assert str(folder / "block_library.json") in message
    assert not out.exists()


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("--max-seconds", "nan"), "nan"),
        (("--limit", "90 <= 80"), "sum"),
        (("--limit", "sum(kv_heads) <= " + "9" * 400), "sum"),
        (("--limit", "-" * 50000), "longer"),
        (("--scenario", "128/" + "9" * 400), "scenario"),
        (("--scenario", "128/1024:tps=1,tps=2"), "twice"),
        (("--scenario", "100000/100000"), "positions"),
        (("--metric", "1e308*kl", "--target-tps", "8000"), "damages"),
        (("--gpu", "h100,l40s", "--solutions", "3"), "one answer each"),
        (("--target-tps", "6000", "--min-distance", "8"), "--min-distance"),
        (("--freeze", "80", "--target-tps", "1"), "80"),
    ],
)
def test_questions_that_cannot_be_asked(
    words: tuple[str, ...], named: str, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(sys, "argv", ["puzzle-search", "solve", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    shown = capsys.readouterr()
    assert not shown.out
    assert named in shown.err
    assert shown.err.count("error: ") == shown.err.count("remedy: ") == 1
    assert len(shown.err) < 2000


@pytest.mark.parametrize(
    "words",
    [
        ("--axis", "memory", "--from", "100", "--to", "200"),
        ("--target-tps", "1e9"),
        ("--to", "inf"),
        ("--to", "colour=3"),
        ("--to", "score=x"),
        ("--target-speedup", "2"),
        ("--axis", "memory", "--target-speedup", "2", "--target-tps", "2000"),
        ("--gpu", "rtx4090", "--from", "speedup=2"),
    ],
)
def test_frontiers_that_cannot_be_asked(
    words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    refuse(monkeypatch, capsys, "frontier", "--points", "3", *words)
