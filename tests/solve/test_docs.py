"""Every command of docs/solving.md and of the Llama-3.1-70B example runs."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from tests.pico import ROOT, run_here

PAGES = ("docs/solving.md", "docs/serving-costs.md", "examples/llama-3.1-70b/README.md")


def commands(page: str) -> list[str]:
    text = (ROOT / page).read_text(encoding="utf-8")
    blocks = re.findall(r"^```bash\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]


@pytest.mark.parametrize("command", [c for page in PAGES for c in commands(page)])
def test_the_command_runs(
    command: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    name, *words = shlex.split(command)
    assert name == "puzzle-search"
    if "--points" in words:  # the same with less work
        words[words.index("--points") + 1] = "3"
    run_here(*words, "--max-seconds", "600")  # proven, however busy the machine
    assert "optimal" in capsys.readouterr().out


def test_there_are_commands() -> None:
    assert all(commands(page) for page in PAGES)


def test_the_example_says_what_its_commands_give(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (ROOT / PAGES[2]).read_text(encoding="utf-8")
    for line, size in zip(commands(PAGES[2]), ("50.82", "37.84"), strict=True):
        words = shlex.split(line)[1:]
        run_here(*words[: words.index("--out")])
        assert size in capsys.readouterr().out
        assert f"{size}B" in text


def test_one_table_gives_both_published_children(capsys: pytest.CaptureFixture[str]) -> None:
    for target, billions, tolerance in (("6472", 51.5, 0.03), ("9568", 40.0, 0.10)):
        run_here("solve", "--gpu", "h100", "--target-tps", target)
        found = re.search(r"parameters, B +[\d.]+ +([\d.]+)", capsys.readouterr().out)
        assert found is not None
        assert float(found[1]) == pytest.approx(billions, rel=tolerance)
