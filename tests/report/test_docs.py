"""Every command of docs/report.md runs."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from tests.pico import ROOT, run_here

PAGE = (ROOT / "docs" / "report.md").read_text(encoding="utf-8")
COMMANDS = [
    line
    for block in re.findall(r"^```bash\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)
    for line in block.splitlines()
]


def test_the_demo_ends_with_pages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for extra in ("matplotlib", "plotly"):
        pytest.importorskip(extra)
    shown = subprocess.run(
        ["make", "-n", "demo"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    lines = shown.stdout.replace("\\\n", " ").splitlines()
    commands = [line.split()[1:] for line in lines if "/puzzle-search " in line]
    verbs = ["solve", "run", "frontier", "frontier", "report", "report"]
    assert [words[0] for words in commands] == verbs
    monkeypatch.chdir(tmp_path)
    Path("examples").symlink_to(ROOT / "examples")
    for words in commands:
        if words[0] in ("frontier", "report") and "runs/stdlib-lm" not in words:
            run_here(*("5" if word == "40" else word for word in words))
    assert str(tmp_path / "runs/llama-3.1-70b/report.html") in capsys.readouterr().out
    assert Path("runs/llama-3.1-70b/report.html").stat().st_size > 4e6


def test_the_commands_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for extra in ("matplotlib", "plotly"):
        pytest.importorskip(extra)
    monkeypatch.chdir(tmp_path)
    children = ROOT / "examples/llama-3.1-70b/children"
    Path("child.yaml").write_text((children / "tps-6000.yaml").read_text())
    for command in COMMANDS:
        name, *words = shlex.split(command)
        assert name == "puzzle-search"
        if "runs/stdlib-lm" in words:  # of a run: tests/report/test_run_page.py
            continue
        run_here(*words)
        printed = capsys.readouterr().out
        if "--out" in words:
            written = Path(words[words.index("--out") + 1])
            assert str(written) in printed
            assert written.exists()
            if "report" in words:
                assert written.stat().st_size > 4e6
        else:
            assert printed.startswith("{")


def test_pictures_of_the_readme_are_small() -> None:
    pictures = sorted((ROOT / "docs" / "images").iterdir())
    names = ["frontier.png", "layers.png", "smollm2-layers.png"]
    assert [picture.name for picture in pictures] == names
    assert all(picture.stat().st_size < 150_000 for picture in pictures)
