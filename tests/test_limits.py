"""Limits on every module of the package."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MODULES = sorted((ROOT / "puzzle_search").rglob("*.py"))
MAX_LINES = 400

# Loading code or running it: safetensors and yaml.safe_load do without. `model.eval()` is no eval.
# Between the processes of one run there is nothing else: what is packed there never meets a file.
BETWEEN_PROCESSES = ROOT / "puzzle_search" / "executor" / "messages.py"
FORBIDDEN = re.compile(r"pickle|torch\.load\(|yaml\.load\(|(?<![\w.])(?:eval|exec)\(")


def test_there_are_modules() -> None:
    assert ROOT / "puzzle_search" / "errors.py" in MODULES


@pytest.mark.parametrize("file", MODULES, ids=lambda file: str(file.relative_to(ROOT)))
def test_a_module_is_short_and_loads_safely(file: Path) -> None:
    lines = file.read_text(encoding="utf-8").splitlines()
    assert len(lines) < MAX_LINES
    found = [f"line {n}: {line}" for n, line in enumerate(lines, start=1) if FORBIDDEN.search(line)]
    assert not found or file == BETWEEN_PROCESSES


def test_what_passes_between_processes_opens_no_file() -> None:
    text = BETWEEN_PROCESSES.read_text(encoding="utf-8")
    assert "pickle.dumps" in text
    assert not re.search(r"pickle\.(dump|load)\(|open\(|Path|read_bytes|write_bytes", text)


@pytest.mark.parametrize(
    "line", ["import pickle", "torch.load(path)", "yaml.load(text)", "x = eval(y)", "exec(code)"]
)
def test_the_pattern_finds_what_it_should(line: str) -> None:
    assert FORBIDDEN.search(line)


@pytest.mark.parametrize("line", ["model.eval()", "retrieval(x)", "yaml.safe_load(text)"])
def test_the_pattern_spares_the_rest(line: str) -> None:
    assert not FORBIDDEN.search(line)
