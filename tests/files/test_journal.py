"""Journals: what was killed goes on, one process at a time."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from puzzle_search.errors import InputError
from puzzle_search.files import (
    Journal,
)

ROOT = Path(__file__).resolve().parents[2]


def test_journal_round_trip(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "stage" / "journal.jsonl")
    assert journal.read() == []
    journal.append({"unit": 1, "text": "a\nb"})
    journal.append({"unit": 2})
    assert Journal(journal.path).read() == [{"unit": 1, "text": "a\nb"}, {"unit": 2}]


@pytest.mark.parametrize("torn", [b'{"unit": 3', b"{", b"\xc3", b'{"unit": 3}'])
@pytest.mark.parametrize("whole", [0, 2])
def test_a_torn_last_line_is_dropped(tmp_path: Path, torn: bytes, whole: int) -> None:
    journal = Journal(tmp_path / "journal.jsonl")
    entries = [{"unit": number} for number in range(whole)]
    for entry in entries:
        journal.append(entry)
    with journal.path.open("ab") as file:
        file.write(torn)
    assert journal.read() == entries
    journal.append({"unit": "next"})
    assert journal.read() == [*entries, {"unit": "next"}]


@pytest.mark.parametrize("damage", [b"{", b"", b"\xff", b"\x00\x00", b"3", b"[1]", b"null"])
def test_a_damaged_line_is_named(tmp_path: Path, damage: bytes) -> None:
    file = tmp_path / "journal.jsonl"
    file.write_bytes(b'{"unit": 1}\n' + damage + b'\n{"unit": 3}\n')
    with pytest.raises(InputError, match=r"journal\.jsonl, line 2 is damaged"):
        Journal(file).read()


def test_reading_leaves_the_line_that_someone_is_writing(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.jsonl")
    journal.append({"unit": 1})
    with journal.path.open("ab", buffering=0) as writer:
        writer.write(b'{"unit"')
        assert Journal(journal.path).read() == [{"unit": 1}]
        writer.write(b": 2}\n")
    assert journal.read() == [{"unit": 1}, {"unit": 2}]


HOLDS = """
import sys, time
from puzzle_search.files import Journal
with Journal(sys.argv[1]).held():
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_journal_is_at_work_for_one_process_until_that_dies(tmp_path: Path) -> None:
    file = tmp_path / "run" / "journal.jsonl"
    command = [sys.executable, "-c", HOLDS, str(file)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with (
            pytest.raises(InputError, match=f"{file.parent}: another process is at work"),
            Journal(file).held(),
        ):
            pass
        assert Journal(file).read() == []  # reading is free
        other.send_signal(signal.SIGKILL)
        other.wait()
        with Journal(file).held():
            pass
