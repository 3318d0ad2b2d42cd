"""Every command of docs/report.md runs."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from tests.pico import ROOT, run_here

PAGE = (ROOT / "docs" / "report.md").read_text(encoding="utf-8")
COMMANDS = [
    line
    for block in re.findall(r"^```bash\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)
    for line in block.splitlines()
]


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
