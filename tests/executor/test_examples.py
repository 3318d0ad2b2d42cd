"""The cluster examples parse, and ask the command line for what it has."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest
import typer
import yaml

from puzzle_search.cli.main import app
from tests.pico import ROOT

FOLDER = ROOT / "examples" / "cluster"
SCRIPTS = ("slurm.sh", "sky.yaml")
COMMANDS = {"library", "score", "distill"}


def shell(name: str) -> str:
    text = (FOLDER / name).read_text(encoding="utf-8")
    return str(yaml.safe_load(text)["run"]) if name.endswith(".yaml") else text


def calls(name: str) -> dict[str, list[str]]:
    """Options of each ``puzzle-search`` command in a script."""
    lines = shell(name).replace("\\\n", " ").splitlines()
    found = {}
    for line in lines:
        words = shlex.split(line, comments=True)
        if "puzzle-search" in words:
            command, *rest = words[words.index("puzzle-search") + 1 :]
            found[command] = [word for word in rest if word.startswith("--")]
    return found


@pytest.mark.parametrize("name", SCRIPTS)
def test_bash_can_read_it(name: str, tmp_path: Path) -> None:
    (tmp_path / "script.sh").write_text(shell(name))
    done = subprocess.run(["bash", "-n", tmp_path / "script.sh"], capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_command_line_has_what_is_asked_of_it(name: str) -> None:
    asked = calls(name)
    assert asked.keys() == COMMANDS
    group = typer.main.get_command(app)
    for command, options in asked.items():
        known = {o for p in group.commands[command].params for o in (*p.opts, *p.secondary_opts)}
        assert options
        assert set(options) <= known, command


def test_sky_names_what_it_runs_on() -> None:
    task = yaml.safe_load((FOLDER / "sky.yaml").read_text(encoding="utf-8"))
    assert task["num_nodes"] == 2
    assert set(re.findall(r"\bSTAGE\b|\bOMP_NUM_THREADS\b", str(task["envs"]))) <= set(task["envs"])
    assert all(isinstance(value, str) for value in task["envs"].values())
