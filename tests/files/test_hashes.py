"""Content hashes, remembered while a file stays as it is."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from time import time
from typing import BinaryIO

import pytest

from puzzle_search.files import (
    file_hash,
    value_hash,
)


def test_hashes(tmp_path: Path) -> None:
    file = tmp_path / "a"
    file.write_bytes(b"abc")
    expected = hashlib.sha256(b"abc").hexdigest()[:16]
    assert file_hash(file) == expected
    assert value_hash({"b": 1, "a": 2}) == value_hash({"a": 2, "b": 1})
    assert value_hash([1, 2]) != value_hash([2, 1])


def test_large_files_are_not_read_again_until_they_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    read: list[str] = []
    digest = hashlib.file_digest

    def counted(file: BinaryIO, name: str) -> object:
        read.append(file.name)
        return digest(file, name)

    monkeypatch.setattr("puzzle_search.files.hashes.hashlib.file_digest", counted)
    monkeypatch.setattr("puzzle_search.files.hashes.time.time", lambda: time() + 10)
    contents = [bytes(2**20), b"1" * 2**20]
    file = tmp_path / "weights"
    file.write_bytes(contents[0])
    expected = [hashlib.sha256(content).hexdigest()[:16] for content in contents]
    assert [file_hash(file), file_hash(file)] == [expected[0]] * 2
    assert len(read) == 1
    # Size and modification time as before, as `cp --preserve` and `rsync --times` leave them.
    times = file.stat()
    file.write_bytes(contents[1])
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert file_hash(file) == expected[1]
    (cached,) = (tmp_path / "cache" / "puzzle-search" / "hashes").iterdir()
    cached.write_text("{")
    assert file_hash(file) == expected[1]
    assert len(read) == 3


def test_a_file_that_has_just_changed_is_not_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "weights").write_bytes(bytes(2**20))
    file_hash(tmp_path / "weights")
    assert not (tmp_path / "cache").exists()
