"""Append-only journals of JSON lines, each at work for one process at a time."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from puzzle_search.errors import InputError
from puzzle_search.files.reading import parse_json
from puzzle_search.files.records import check_line
from puzzle_search.files.writing import full_disk_reported

_T = TypeVar("_T")
_BEGIN_ANEW = "delete the file to begin this stage anew"


class Journal:
    """Append-only JSON lines: every line is on disk before the next unit of work begins.

    A line that is not whole, because its writer was killed or is still at it, is left out on
    reading and cut off by the next append; a damaged line before the end is an error.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Keep others from the work that the journal records, until the block or the process ends.

        Raises:
            InputError: someone else is at that work.
        """
        with full_disk_reported(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.closing(self._locked()):
            yield

    def _locked(self) -> BinaryIO:
        while True:
            file = self.path.open("ab")
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                file.close()
                raise InputError(
                    f"{self.path.parent}: another process is at work there ({self.path.name} is "
                    "locked)",
                    remedy="wait for it to end, or name another place",
                ) from error
            except OSError as error:
                if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
                    raise
                print(
                    f"note: the file system of {self.path} has no locks: start nothing else there",
                    file=sys.stderr,
                )
            # Who held it may have deleted it meanwhile.
            if self.path.exists() and os.path.samestat(os.fstat(file.fileno()), self.path.stat()):
                return file
            file.close()

    def is_held(self) -> bool:
        """Whether someone is at the work that the journal records."""
        try:
            with self.path.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:  # not there, or on a file system without locks
            return False
        return False

    def read(self) -> list[dict[str, Any]]:
        """All whole entries.

        Raises:
            InputError: a line other than the last is not a JSON object.
        """
        if not self.path.exists():
            return []
        entries = []
        for number, line in enumerate(self.path.read_bytes().split(b"\n")[:-1], start=1):
            try:
                entry = parse_json(line)
                if not isinstance(entry, dict):
                    raise ValueError("not a JSON object")
            except ValueError as error:  # also bytes that are no text
                raise InputError(
                    f"{self.path}, line {number} is damaged: {error}",
                    remedy=_BEGIN_ANEW,
                ) from error
            entries.append(entry)
        return entries

    def append(self, entry: Mapping[str, Any]) -> None:
        """Write one entry and wait until it is on disk.

        Raises:
            InputError: the disk is full.
        """
        with full_disk_reported(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a+b") as file:
                _cut_off_torn_line(file)
                file.write(json.dumps(entry).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())


def _cut_off_torn_line(file: BinaryIO) -> None:
    end = file.seek(0, os.SEEK_END)
    if not end:
        return
    file.seek(end - 1)
    if file.read() != b"\n":
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)


def resume_journal(journal: Journal, made_from: dict[str, Any], kind: type[_T] | Any) -> list[_T]:
    """The results in a journal whose first line says what they were made from.

    An empty journal is begun with that line.

    Args:
        journal: first line ``{"made_from": ...}``, then one result a line.
        made_from: settings and content hashes that every result depends on.
        kind: dataclass of a result, or several of them.

    Raises:
        InputError: the journal was made from something else, or a result is none.
    """
    lines = journal.read()
    if not lines:
        journal.append({"made_from": made_from})
        return []
    found = lines[0].get("made_from")
    if not isinstance(found, dict):
        found = {}
    differ = sorted(
        key for key in made_from.keys() | found.keys() if found.get(key) != made_from.get(key)
    )
    if differ:
        raise InputError(
            f"{journal.path} holds results of another run: {', '.join(differ)} differ",
            remedy="give what that run was given, write elsewhere, or delete that file to begin "
            "anew",
        )
    return [
        check_line(kind, line, f"{journal.path}, line {number}", remedy=_BEGIN_ANEW)
        for number, line in enumerate(lines[1:], start=2)
    ]
