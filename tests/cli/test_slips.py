"""Slips of hand: numbers that nobody means, and outputs that would take something else's place."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.main import get_command

from puzzle_search.arch import ArchitectureSpec
from puzzle_search.cli.checked import CheckedCommand
from puzzle_search.cli.main import app
from puzzle_search.errors import InputError
from tests.faults import with_nan
from tests.pico import Pico, command_line, environment, run_command, run_here

OF_A_LIBRARY = ["library", "--parent", "p", "--space", "s", "--data", "d", "--out", "new"]
OF_A_SCORE = [
    "score", "--parent", "p", "--library", "l", "--space", "s", "--data", "d", "--out", "new.csv",
]  # fmt: skip
OF_A_DISTILLATION = [
    "distill", "--parent", "p", "--child", "c", "--data", "d", "--out", "new", "--tokens", "1",
]  # fmt: skip


@pytest.mark.parametrize(
    ("command", "option", "value"),
    [
        (["solve"], "--margin", "5"),
        (["solve"], "--margin", "100%"),
        (["solve"], "--max-seconds", "-1"),
        (["solve"], "--max-seconds", "nan"),
        (["solve"], "--solutions", "1000000000"),
        (["solve"], "--max-score", "inf"),
        (["frontier"], "--points", "1000000000000"),
        (["frontier"], "--from", "nan"),
        (OF_A_LIBRARY, "--tokens", str(10**30)),
        (OF_A_LIBRARY, "--workers", "1000000"),
        (OF_A_SCORE, "--jobs", "1000000000"),
        (OF_A_DISTILLATION, "--seed", str(2**64)),
        (["generate", "m", "--prompt", "a"], "--seed", str(2**64)),
        (["generate", "m"], "--prompt", "\udcff"),
        (["bench", "m"], "--num-iters", str(10**12)),
        (["import", "puzzletron", "f", "--out", "o"], "--batch", str(10**20)),
    ],
)
def test_numbers_that_nobody_means_are_refused_before_anything_is_read(
    command: list[str], option: str, value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as caught:
        app([*command, option, value], standalone_mode=False)
    assert option in str(caught.value) or value in caught.value.message
    assert list(tmp_path.iterdir()) == []


def test_every_option_that_is_a_number_has_bounds() -> None:
    def commands(group: Any) -> list[Any]:
        inner = getattr(group, "commands", None)
        return [c for one in inner.values() for c in commands(one)] if inner else [group]

    found = commands(get_command(app))
    assert len(found) > 15
    unchecked = {c.name for c in found if not isinstance(c, CheckedCommand)}
    assert unchecked == {"version"}


@pytest.mark.parametrize("rate", ["-1", "0", "nan", "1e30", "inf"])
@pytest.mark.parametrize("command", [OF_A_LIBRARY, OF_A_DISTILLATION])
def test_learning_rates_that_cannot_be(
    pico: Pico, command: list[str], rate: str, tmp_path: Path
) -> None:
    given = {"p": pico.parent, "s": pico.space_file, "d": pico.corpus, "new": tmp_path / "new"}
    words = [str(given.get(word, word)) for word in command]
    with pytest.raises(InputError, match=r"learning.rate"):
        run_here(*words, "--learning-rate", rate)
    assert list(tmp_path.iterdir()) == []


FILES = [
    (["solve"], "--out"),
    (OF_A_SCORE[:-2], "--out"),
    (["calibrate", "tables"], "--out"),
    (["evaluate", "p", "c", "--data", "d"], "--markdown"),
    (["bench", "m"], "--output-json"),
]


@pytest.mark.parametrize(("command", "option"), FILES)
def test_an_output_that_is_no_regular_file_is_refused_before_any_work(
    command: list[str], option: str, tmp_path: Path
) -> None:
    fifo, folder, file = tmp_path / "fifo", tmp_path / "folder", tmp_path / "file"
    os.mkfifo(fifo)
    folder.mkdir()
    file.touch()
    for path in ("/dev/null", fifo, folder, file / "below"):
        with pytest.raises(InputError) as caught:
            run_here(*command, option, path)
        assert str(path) in caught.value.message
    assert fifo.is_fifo()
    assert Path("/dev/null").is_char_device()


@pytest.mark.parametrize(
    ("command", "option"),
    [
        (OF_A_LIBRARY[:-2], "--out"),
        (["profile", "--model", "m", "--space", "s"], "--out"),
        (["frontier"], "--out"),
        (["bench", "sweep", "m"], "--out"),
        (["import", "nvlabs", "f"], "--out"),
    ],
)
def test_folders_of_other_people_are_left_alone(
    command: list[str], option: str, tmp_path: Path
) -> None:
    (tmp_path / "thesis.txt").write_text("x")
    for path in (tmp_path, tmp_path / "thesis.txt", Path("-")):
        with pytest.raises(InputError) as caught:
            run_here(*command, option, path)
        assert str(path) in caught.value.message
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_score_table_is_not_written_over_by_its_sidecar(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"name the table .*s\.csv"):
        run_here(*OF_A_SCORE[:-1], tmp_path / "s.yaml")


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    pairs = [("no_op", "no_op")] + [("gqa_8", "mlp_28672")] * 79
    ArchitectureSpec.of("llama-3.1-70b", pairs).write(tmp_path / "child.yaml")
    return tmp_path / "child.yaml"


def test_what_latin_1_cannot_show_is_drawn_in_plain_characters(spec: Path) -> None:
    ended = subprocess.run(
        command_line("explain", spec, "--model", "llama-3.1-70b"),
        env=environment() | {"PYTHONIOENCODING": "latin-1"},
        capture_output=True,
        timeout=300,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    shown = ended.stdout.decode("latin-1")
    assert ".888888888 8888888888" in shown
    assert "1 to 8: KV heads, FFN width or experts left;  w window;  ~ linear;  . dropped" in shown


@pytest.mark.parametrize("stream", ["-", "/dev/stdout"])
def test_a_spec_goes_to_a_pipe(stream: str) -> None:
    ended = run_command("solve", "--target-tps", "4000", "--out", stream)
    assert ended.returncode == 0, ended.stderr
    assert yaml.safe_load(ended.stdout)["format"] == "puzzle-search.architecture/1"


def test_a_link_is_written_through(tmp_path: Path) -> None:
    (tmp_path / "link.yaml").symlink_to("real.yaml")
    run_here("solve", "--target-tps", "4000", "--out", tmp_path / "link.yaml")
    assert (tmp_path / "link.yaml").is_symlink()
    assert (tmp_path / "real.yaml").read_text().startswith("format: puzzle-search.architecture/1")


@pytest.mark.parametrize(
    "command", [["generate", "--prompt", "abc"], ["bench", "--num-iters", "1"]]
)
def test_weights_that_are_no_numbers_are_told(
    pico: Pico, tmp_path: Path, command: list[str]
) -> None:
    broken = with_nan(pico, tmp_path / "broken", "lm_head.weight").parent
    with pytest.raises(InputError, match="not finite"):
        run_here(command[0], broken, *command[1:])
