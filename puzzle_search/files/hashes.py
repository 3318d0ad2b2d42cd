"""Content hashes of values and files; those of large files are remembered.

A checkpoint of 141 GB takes minutes to hash, and every command that reads one asks for its hash.
So hashes of files of 1 MiB and more are kept in the user's cache folder
(``$XDG_CACHE_HOME/puzzle-search/hashes``, by default below ``~/.cache``), one small file for each
folder of files. One is believed only while size, modification and change time, inode and device
are what they were when it was taken.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from pathlib import Path

from puzzle_search.errors import InputError
from puzzle_search.files.reading import read_json
from puzzle_search.files.writing import write_text

_SMALLEST_BYTES = 2**20  # below, reading the file takes no longer than reading the cache
_TICK_SECONDS = 2  # coarsest clock of a file system: later changes may leave the time as it is


def value_hash(value: object) -> str:
    """SHA-256 of a JSON-serialisable value, 16 hex digits."""
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def file_hash(path: str | Path) -> str:
    """SHA-256 of a file's content, 16 hex digits; remembered of a large file.

    Raises:
        OSError: the file cannot be read.
    """
    file = Path(path).resolve()
    before = _state(file)
    if before[0] < _SMALLEST_BYTES:
        return _read_hash(file)
    cache = _cache_folder() / f"{value_hash(str(file.parent))}.json"
    known = _entries(cache).get(file.name)
    if isinstance(known, dict) and known.get("state") == before:
        return str(known.get("sha256"))
    found = _read_hash(file)
    changed = max(before[1], before[2]) / 1e9
    if _state(file) == before and time.time() - changed > _TICK_SECONDS:
        entries = _entries(cache) | {file.name: {"state": before, "sha256": found}}
        # A cache that cannot be written costs time, nothing else.
        with contextlib.suppress(OSError, InputError):
            write_text(cache, json.dumps(entries))
    return found


def _read_hash(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()[:16]


def _state(file: Path) -> list[int]:
    stat = file.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino, stat.st_dev]


def _cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or f"{os.environ.get('HOME', '')}/.cache"
    return Path(base) / "puzzle-search" / "hashes"


def _entries(cache: Path) -> dict[str, object]:
    try:
        return read_json(cache, remedy="")
    except InputError:  # there is none yet, or it is damaged: hashes are taken anew
        return {}
