"""Scoring that was killed is finished as if it had not been."""

from __future__ import annotations

import csv
import json
from pathlib import Path

from tests.pico import Pico, kill_after, run_here

UNITS = 3 * (4 * 3 - 1)


def arguments(pico: Pico, library: Path, out: Path) -> list[object]:
    return [
        "score", "--parent", pico.parent, "--library", library, "--space", pico.space_file,
        "--data", pico.corpus, "--out", out, "--tokens", 2048, "--length", 32,
        "--metrics", "kl,lm_loss",
    ]  # fmt: skip


def scores(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as text:
        return list(csv.DictReader(text))


def test_killed_scoring_is_continued(pico: Pico, pico_library: Path, tmp_path: Path) -> None:
    killed, whole = tmp_path / "killed.csv", tmp_path / "whole.csv"
    journal = tmp_path / "killed.journal.jsonl"
    before = kill_after(journal, 3, *arguments(pico, pico_library, killed))
    assert not killed.exists()
    done = before.count(b"\n") - 1
    assert 2 <= done < UNITS
    # A crash in the middle of a write: the last whole entry loses its second half.
    kept = before[: before.rstrip(b"\n").rfind(b"\n") + 40]
    journal.write_bytes(kept)
    run_here(*arguments(pico, pico_library, killed))
    content = journal.read_bytes()
    # What had been journaled stays, to the byte, and nothing is scored twice.
    assert content.startswith(kept[: kept.rfind(b"\n") + 1])
    units = [json.loads(line) for line in content.splitlines()[1:]]
    keys = {(unit["first_layer"], unit["attention"], unit["ffn"]) for unit in units}
    assert len(units) == len(keys) == UNITS

    run_here(*arguments(pico, pico_library, whole))
    assert scores(killed) == scores(whole)
    assert len(scores(whole)) == 2 * UNITS  # metrics
    assert killed.with_suffix(".yaml").read_text() == whole.with_suffix(".yaml").read_text()
