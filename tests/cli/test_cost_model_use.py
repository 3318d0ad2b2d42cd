"""Cost models in use: the commands of docs/cost-models.md, and what ``solve`` refuses."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import pytest

from puzzle_search.cli.main import main
from puzzle_search.cost.modelled.hardware import find_cost_model

ROOT = Path(__file__).resolve().parents[2]
DOCS = (ROOT / "docs" / "cost-models.md").read_text(encoding="utf-8")


def run(monkeypatch: pytest.MonkeyPatch, words: list[str]) -> int:
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as ended:
        main()
    assert isinstance(ended.value.code, int)
    return ended.value.code


@pytest.mark.slow
def test_the_commands_of_the_docs_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    for folder in ("profiles", "examples"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```bash\n(.*?)^```$", DOCS, flags=re.MULTILINE | re.DOTALL)
    commands = [line for block in blocks for line in block.splitlines()]
    assert len(commands) == 5
    for command in commands:
        assert run(monkeypatch, shlex.split(command)) == 0, command
    told = capsys.readouterr().out
    assert "cost datasheet" in told
    assert (tmp_path / "cpu.yaml").exists()
    assert (tmp_path / "derived.yaml").exists()
    assert (tmp_path / "plots" / "residuals-torch.png").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--gpu a100 --dtype fp8", "the cost model of a100 has no fp8 constants for trtllm"),
        ("--gpu h100 --engine mlx", "the cost model of h100 has no engine 'mlx'"),
        ("--gpu h100 --dtype fp32", "the cost model of h100 has no fp32 constants for trtllm"),
        ("--gpu cpu --engine trtllm", "the cost model of cpu has no engine 'trtllm'"),
        ("--gpu cpu --engine torch --dtype fp32 --tp 2", "cpu has no costs for TP 2"),
        ("--gpu abacus", "no cost model for GPU 'abacus'"),
        ("--gpu missing.yaml", "missing.yaml does not exist"),
    ],
)
def test_what_solve_refuses(
    options: str,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["puzzle-search", "solve", "--target-tps", "1000", *options.split()]
    assert run(monkeypatch, words) == 2
    shown = capsys.readouterr()
    assert message in shown.err
    assert shown.err.count("\n  remedy: ") == 1
    assert "Traceback" not in shown.err


def test_solve_takes_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    own = tmp_path / "own.yaml"
    own.write_text(find_cost_model("b200").read_text().replace("gpu: b200", "gpu: ours"))
    words = ["puzzle-search", "solve", "--gpu", str(own), "--target-tps", "9000"]
    assert run(monkeypatch, words) == 0
    assert "on ours" in capsys.readouterr().out
