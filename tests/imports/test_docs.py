"""The import commands and the Python of docs/importing.md run, on hand-made files."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from tests.imports.gguf_files import PicoGguf, published_tokenizer
from tests.imports.nvlabs import write_library
from tests.imports.puzzletron import stats, write_puzzle
from tests.pico import ROOT, run_here

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
GUIDE = (ROOT / "docs" / "importing.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", GUIDE, flags=re.MULTILINE | re.DOTALL)


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_library(tmp_path / "Llama-3.3-70B-Instruct")
    write_puzzle(tmp_path / "puzzle_dir", [stats(4), stats(8), stats(8, dtype="torch.int8")])
    tokenizer = published_tokenizer("smollm", ["The capital of France is Paris."], size=300)
    PicoGguf(pre="smollm", tokenizer=tokenizer).write(tmp_path / GGUF)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_commands_run(workplace: Path) -> None:
    lines = [line for block in blocks("bash") for line in block.splitlines()]
    imports = [shlex.split(line) for line in lines if " import " in line]
    assert [words[2] for words in imports] == ["nvlabs", "puzzletron", "gguf"]
    for words in imports:
        run_here(*words[1:])
        written = "model.safetensors" if words[2] == "gguf" else "block_costs.csv"
        assert (workplace / words[words.index("--out") + 1] / written).exists()
    [generate] = [shlex.split(line) for line in lines if " generate " in line]
    run_here(*generate[1:])


def test_the_python_runs(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for code in blocks("python"):
        exec(code, {})
    tables, model = capsys.readouterr().out.splitlines()
    assert tables == "12 ('kl', 'lm_loss')"
    assert model == "llama {'F32': 5, 'Q8_0': 15}"
    assert (workplace / "nvlabs-70b" / "scores.csv").exists()
