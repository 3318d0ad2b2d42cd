"""Every command of docs/evaluation.md runs, and so does its Python."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from puzzle_search.arch import ArchitectureSpec, BlockChoice
from puzzle_search.build import build_child
from tests.pico import ROOT, Pico, run_here

TEXT = (ROOT / "docs/evaluation.md").read_text(encoding="utf-8")
CHILDREN = {
    "child": [("gqa_1", "mlp_256"), ("", ""), ("no_op", "")],
    "other-child": [("", "no_op"), ("linear", ""), ("", "mlp_256")],
}


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", TEXT, flags=re.MULTILINE | re.DOTALL)


COMMANDS = [line for block in blocks("bash") for line in block.splitlines()]


@pytest.fixture(scope="module")
def workplace(pico: Pico, pico_library: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folders that the page names."""
    folder = tmp_path_factory.mktemp("evaluation")
    (folder / "parent").symlink_to(pico.parent)
    (folder / "text").symlink_to(pico.corpus)
    for name, pairs in CHILDREN.items():
        choices = tuple(
            BlockChoice(layers=(layer,), attention=attention or "gqa_2", ffn=ffn or "mlp_512")
            for layer, (attention, ffn) in enumerate(pairs)
        )
        spec = ArchitectureSpec(parent=pico.config.name, blocks=choices)
        build_child(pico.parent, pico_library, spec, folder / name, dtype="fp32")
    (folder / "tasks").mkdir()
    for language, suffix in (("yaml", "yaml"), ("json", "jsonl")):
        (text,) = blocks(language)
        (folder / "tasks" / f"opposites.{suffix}").write_text(text)
    return folder


@pytest.fixture(autouse=True)
def in_the_workplace(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workplace)


@pytest.mark.parametrize("command", COMMANDS)
def test_the_command_runs(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    if "--tasks" in command:
        pytest.importorskip("lm_eval", reason="pip install 'puzzle-search[eval]'")
    name, *words = shlex.split(command)
    assert name == "puzzle-search"
    run_here(*words)
    printed = capsys.readouterr().out
    assert "KL to the parent" in printed
    assert ("opposites acc" in printed) == ("--tasks" in command)


def test_the_python_runs(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("lm_eval", reason="pip install 'puzzle-search[eval]'")
    (code,) = blocks("python")
    exec(compile(code, "docs/evaluation.md", "exec"), {})
    assert capsys.readouterr().out.count("Figure(") > 10


def test_there_are_commands() -> None:
    assert len(COMMANDS) == 4
