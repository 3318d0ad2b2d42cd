"""Every command of docs/library.md runs, in order, on a small parent in the example's place."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from puzzle_search.arch import SearchSpace
from puzzle_search.library.initialise import INITIALISERS
from tests.pico import ROOT, Pico, run_here

GUIDE = (ROOT / "docs" / "library.md").read_text(encoding="utf-8")
SMALLER = {"65536": "1024", "256MiB": "64MiB"}


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", GUIDE, flags=re.MULTILINE | re.DOTALL)


def test_the_commands_run(
    pico: Pico, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    example = tmp_path / "examples" / "stdlib-lm"
    example.mkdir(parents=True)
    (example / "parent").symlink_to(pico.parent)
    (example / "space.yaml").write_text(pico.space_file.read_text())
    [space] = blocks("yaml")
    (tmp_path / "reduced.yaml").write_text(space)
    runs = len(SearchSpace.from_file(tmp_path / "reduced.yaml", pico.config).runs)
    monkeypatch.chdir(tmp_path)
    commands = [line for block in blocks("bash") for line in block.splitlines()]
    assert len(commands) == 3
    for command, made in zip(commands, (15, 3 * (4 + 4) + runs, 15), strict=True):
        words = [SMALLER.get(word, word) for word in shlex.split(command)]
        words[words.index("python-stdlib")] = str(pico.corpus)
        assert words[0] == "puzzle-search"
        run_here(*words[1:], "--length", 32, "--held-out-tokens", 512)
        assert f"{made} variants trained" in capsys.readouterr().out
    library, small = (
        json.loads((tmp_path / out / "library.json").read_text()) for out in ("library", "small")
    )
    assert library["entries"] == small["entries"]


def test_every_initialiser_is_told() -> None:
    names = {name for methods in INITIALISERS.values() for name in methods}
    assert names == set(re.findall(r"^\|[^|]*\| `(\w+)` \|", GUIDE, flags=re.MULTILINE))
