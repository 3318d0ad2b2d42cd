"""Every command of the README runs, and so does its Python."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.pico import run_here

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")

# The demo's own sizes take minutes; the commands are the same with less work in the recipe.
SMALLER = {
    "tokens: 65536": "tokens: 2048",
    "calibration_tokens: 16384": "calibration_tokens: 2048",
    "held_out_tokens: 8192": "held_out_tokens: 1024",
    "iterations: 10": "iterations: 2",
    "tokens: 32768": "tokens: 2048",
    "tokens: 49152": "tokens: 4096",
}


def _blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)


def _environment() -> dict[str, str]:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return os.environ | {"PATH": path, "HF_HUB_OFFLINE": "1"}


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a copy of the examples, as a newcomer's checkout has them."""
    folder = tmp_path_factory.mktemp("readme")
    skipped = shutil.ignore_patterns("work", "text", "*.jsonl")
    shutil.copytree(ROOT / "examples", folder / "examples", ignore=skipped)
    shutil.copytree(ROOT / "profiles", folder / "profiles")
    recipe = folder / "examples/stdlib-lm/recipe.yaml"
    text = recipe.read_text()
    for large, small in SMALLER.items():
        assert large in text
        text = text.replace(large, small)
    text = re.sub(
        r"(score:\n  tokens: )\d+\n  composed: true", r"\g<1>1024\n  composed: false", text
    )
    text = re.sub(r"max_minutes: [\d.]+", "max_minutes: 0.1", text)
    recipe.write_text(text)
    return folder


def test_there_are_commands_and_python() -> None:
    assert len(_blocks("bash")) >= 3
    assert len(_blocks("python")) == 1


COMMANDS = [line for block in _blocks("bash") for line in block.splitlines() if line.strip()]
_ASKS = re.compile(r"puzzle-search (solve|frontier|explain|compare)\b")


def test_every_question_is_answered(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(workplace)
    asked = [command for command in COMMANDS if _ASKS.match(command)]
    assert len(asked) > 5
    for command in asked:
        run_here(*shlex.split(command)[1:])
        assert capsys.readouterr().out.strip(), command


@pytest.mark.slow
def test_every_command_runs(workplace: Path) -> None:
    assert all(command.startswith("puzzle-search ") for command in COMMANDS)
    for command in COMMANDS:
        done = subprocess.run(
            shlex.split(command),
            cwd=workplace,
            env=_environment(),
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == 0, f"{command}\n{done.stderr}"
        assert done.stdout.strip(), command


@pytest.mark.slow
def test_the_python_runs(workplace: Path) -> None:
    [code] = _blocks("python")
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=workplace,
        env=_environment(),
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    assert "optimal" in done.stdout


def test_make_targets_of_the_readme_exist() -> None:
    for target in re.findall(r"^    make (\w+)", README, flags=re.MULTILINE):
        subprocess.run(["make", "-n", target], cwd=ROOT, check=True, capture_output=True)
