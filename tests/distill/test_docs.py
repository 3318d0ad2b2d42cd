"""The command and the Python of docs/distillation.md run."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from tests.distill.helpers import make_child, metrics
from tests.pico import ROOT, Pico, run_here

PAGE = (ROOT / "docs" / "distillation.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)


@pytest.fixture
def workplace(
    pico: Pico, pico_library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    make_child(pico, pico_library, tmp_path / "child")
    (tmp_path / "parent").symlink_to(pico.parent)
    (tmp_path / "corpus").symlink_to(pico.corpus)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_command_and_the_python_run(
    workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    [command], [code] = blocks("bash"), blocks("python")
    run_here(*shlex.split(command)[1:])
    assert capsys.readouterr().out.splitlines() == [
        "distilled child written to distilled",
        "next: puzzle-search evaluate parent distilled --data corpus",
    ]
    exec(code, {})
    for name in ("distilled", "from_python"):
        assert (workplace / name / "distillation.json").exists()
        assert len(metrics(workplace / name)) == 9
