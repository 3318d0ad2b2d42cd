"""Every command of docs/scoring.md runs."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from puzzle_search.arch import ArchitectureSpec
from tests.pico import ROOT, Pico, run_here

TEXT = (ROOT / "docs/scoring.md").read_text(encoding="utf-8")
[BLOCK] = re.findall(r"^```bash\n(.*?)^```$", TEXT, flags=re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("command", BLOCK.splitlines())
def test_the_command_runs(
    command: str,
    pico: Pico,
    pico_library: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, path in (
        ("parent", pico.parent),
        ("library", pico_library),
        ("corpus", pico.corpus),
        ("space.yaml", pico.space_file),
    ):
        (tmp_path / name).symlink_to(path)
    pairs = [("gqa_1", "mlp_512"), ("gqa_2", "mlp_512"), ("gqa_2", "mlp_256")]
    ArchitectureSpec.of("parent", pairs).write(tmp_path / "architecture.yaml")
    name, *words = shlex.split(command)
    assert name == "puzzle-search"
    run_here(*words, "--tokens", "512", "--length", "32")
    assert "replacements scored" in capsys.readouterr().out
