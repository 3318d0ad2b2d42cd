"""The import commands and the Python of docs/importing.md run, on hand-made files."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from tests.imports.nvlabs import write_library
from tests.imports.puzzletron import stats, write_puzzle
from tests.pico import ROOT, run_here

GUIDE = (ROOT / "docs" / "importing.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", GUIDE, flags=re.MULTILINE | re.DOTALL)


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_library(tmp_path / "Llama-3.3-70B-Instruct")
    write_puzzle(tmp_path / "puzzle_dir", [stats(4), stats(8), stats(8, dtype="torch.int8")])
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_commands_run(workplace: Path) -> None:
    lines = [line for block in blocks("bash") for line in block.splitlines()]
    imports = [shlex.split(line) for line in lines if " import " in line]
    assert len(imports) == 2
    for words in imports:
        run_here(*words[1:])
        assert (workplace / words[words.index("--out") + 1] / "block_costs.csv").exists()


def test_the_python_runs(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    [code] = blocks("python")
    exec(code, {})
    assert capsys.readouterr().out == "12 ('kl', 'lm_loss')\n"
    assert (workplace / "nvlabs-70b" / "scores.csv").exists()
