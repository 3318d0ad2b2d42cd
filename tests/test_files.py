"""Files are written whole or not at all, and read strictly."""

from __future__ import annotations

import errno
import hashlib
import os
import platform
import signal
import subprocess
import sys
from pathlib import Path
from time import time
from typing import BinaryIO

import pytest

from puzzle_search.errors import InputError
from puzzle_search.files import (
    Journal,
    check_keys,
    file_hash,
    folder_written_whole,
    read_json,
    read_text,
    read_yaml,
    value_hash,
    write_text,
    written_whole,
)

ROOT = Path(__file__).resolve().parents[1]
FORMAT = "puzzle-search.test/1"


class Interrupted(Exception):
    """Stands for anything that ends a write early."""


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_write_text_makes_folders_and_leaves_one_file(tmp_path: Path) -> None:
    file = tmp_path / "a" / "b.txt"
    write_text(file, "one\n")
    write_text(file, "två\n")
    assert file.read_bytes() == "två\n".encode()
    assert names(file.parent) == ["b.txt"]


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("old")
    with pytest.raises(Interrupted), written_whole(file) as temporary:
        temporary.write_text("half")
        raise Interrupted
    assert file.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_the_target_does_not_exist_before_the_write_ends(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    with written_whole(file) as temporary:
        temporary.write_text("new")
        assert not file.exists()
        assert temporary.parent == file.parent  # one file system: the rename is atomic
    assert file.read_text() == "new"


def test_a_folder_is_replaced_as_one(tmp_path: Path) -> None:
    target = tmp_path / "child"
    for content in ("one", "two"):
        with folder_written_whole(target) as folder:
            (folder / f"{content}.txt").write_text(content)
    assert names(target) == ["two.txt"]
    assert names(tmp_path) == ["child"]
    assert target.stat().st_mode & 0o777 == 0o755


KILLED_WHILE_WRITING = """
import os, signal, sys
from pathlib import Path
from puzzle_search.files import folder_written_whole, written_whole
writing = {"file": written_whole, "folder": folder_written_whole}[sys.argv[1]]
with writing(Path(sys.argv[2])) as temporary:
    (temporary / "half" if temporary.is_dir() else temporary).write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_a_killed_write_left_is_cleared_away_by_the_next(kind: str, tmp_path: Path) -> None:
    target = tmp_path / "result"
    command = [sys.executable, "-c", KILLED_WHILE_WRITING, kind, str(target)]
    killed = subprocess.run(command, cwd=ROOT, check=False)
    assert killed.returncode == -signal.SIGKILL
    (left,) = names(tmp_path)
    assert left.startswith(".result.")
    # Of a process that lives, and of another machine.
    others = [f".result.{platform.node()}.{os.getppid()}.tmp", ".result.elsewhere.1.tmp"]
    for name in others:
        (tmp_path / name).touch()
    writing = folder_written_whole if kind == "folder" else written_whole
    with writing(target) as temporary:
        (temporary / "whole" if kind == "folder" else temporary).write_text("whole")
    assert names(tmp_path) == sorted([*others, "result"])


def test_a_folder_that_lost_its_name_between_two_renames_has_it_again(tmp_path: Path) -> None:
    gone = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"],
                          capture_output=True, text=True, check=True)  # fmt: skip
    aside = tmp_path / f".child.{platform.node()}.{gone.stdout.strip()}.old"
    aside.mkdir()
    (aside / "old.txt").write_text("old")
    target = tmp_path / "child"
    with pytest.raises(Interrupted), folder_written_whole(target):
        raise Interrupted
    assert names(tmp_path) == ["child"]
    assert names(target) == ["old.txt"]


def test_an_interrupted_folder_leaves_the_old_one(tmp_path: Path) -> None:
    target = tmp_path / "child"
    target.mkdir()
    (target / "old.txt").write_text("old")
    with pytest.raises(Interrupted), folder_written_whole(target) as folder:
        (folder / "half.txt").write_text("half")
        raise Interrupted
    assert names(target) == ["old.txt"]
    assert names(tmp_path) == ["child"]


def test_an_old_folder_is_whole_until_the_new_one_is_in_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "child"
    target.mkdir()
    (target / "old.txt").write_text("old")
    seen: list[list[str]] = []
    monkeypatch.setattr(
        "puzzle_search.files.writing.shutil.rmtree", lambda *_, **__: seen.append(names(target))
    )
    with folder_written_whole(target) as folder:
        (folder / "new.txt").write_text("new")
    assert seen[0] == ["new.txt"]  # nothing was deleted while the old folder was in place


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_an_error_that_one_can_act_on(tmp_path: Path, number: int) -> None:
    with (
        pytest.raises(InputError, match=r"a\.txt: no space is left") as caught,
        written_whole(tmp_path / "a.txt") as temporary,
    ):
        temporary.write_text("half")
        raise OSError(number, "full")
    assert "run the same command again" in caught.value.remedy
    assert names(tmp_path) == []


def test_other_errors_of_the_system_stay_what_they_are(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="Input/output"), folder_written_whole(tmp_path / "a"):
        raise OSError(errno.EIO, "Input/output error")
    assert names(tmp_path) == []


def test_hashes(tmp_path: Path) -> None:
    file = tmp_path / "a"
    file.write_bytes(b"abc")
    expected = hashlib.sha256(b"abc").hexdigest()[:16]
    assert file_hash(file) == expected
    assert value_hash({"b": 1, "a": 2}) == value_hash({"a": 2, "b": 1})
    assert value_hash([1, 2]) != value_hash([2, 1])


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


def yaml_file(folder: Path, text: str) -> Path:
    file = folder / "a.yaml"
    file.write_text(text, encoding="utf-8")
    return file


def test_read_yaml(tmp_path: Path) -> None:
    file = yaml_file(tmp_path, f"format: {FORMAT}\nvalue: [1, 2.5, null]\n")
    assert read_yaml(file, format=FORMAT) == {"format": FORMAT, "value": [1, 2.5, None]}


def test_yaml_anchors_and_merges_still_work(tmp_path: Path) -> None:
    file = yaml_file(tmp_path, f"format: {FORMAT}\na: &a {{x: 1, y: 2}}\nb: {{<<: *a, y: 3}}\n")
    assert read_yaml(file, format=FORMAT)["b"] == {"x": 1, "y": 3}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1", "not valid YAML"),
        ("a: 1\n b: 2", "line 2"),
        ("", "format is None"),
        ("- 1", "format is None"),
        ("format: other/1", "format is 'other/1'"),
        ("format: [1]", r"format is \[1\]"),
        ("a: 1\nb: 2\na: 3", r"'a' is given twice\s+in .* line 3"),
        ("a: {b: 1, b: 1}", "'b' is given twice"),
        ("a: 1\n---\nb: 2", "not valid YAML"),
        ("a: !!python/object/apply:os.getcwd []", "not valid YAML"),
        ("a: 2001-99-99", "'2001-99-99' is not a valid value"),
        ("a: !!bool x", "'x' is not a valid value"),
        ("a: \x07", "not valid YAML"),
        (r'gpu: "H100\e[2J"', "holds control characters"),
        ("[" * 100_000, "nested deeper than 100 levels"),
        ("\n".join(" " * depth + "a:" for depth in range(200)), "nested deeper"),
    ],
)
def test_read_yaml_errors_name_the_file(tmp_path: Path, text: str, message: str) -> None:
    file = yaml_file(tmp_path, text)
    with pytest.raises(InputError, match=message) as caught:
        read_yaml(file, format=FORMAT)
    assert str(file) in caught.value.message
    assert caught.value.remedy


def test_read_text_errors_name_the_file(tmp_path: Path) -> None:
    binary = tmp_path / "binary"
    binary.write_bytes(b"\xff")
    for path in (tmp_path / "nowhere", tmp_path, binary):
        with pytest.raises(InputError) as caught:
            read_text(path, remedy="do this")
        assert str(path) in caught.value.message
        assert caught.value.remedy == "do this"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_an_unreadable_file_is_named(tmp_path: Path) -> None:
    file = yaml_file(tmp_path, "a: 1")
    file.chmod(0)
    with pytest.raises(InputError, match="cannot be read"):
        read_text(file, remedy="do this")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"a": 1, "b": 2}, None),
        ({"a": 1, "b": 2, "c": 3}, None),
        ({"a": 1}, "here: key 'b' is missing"),
        ({}, "here: keys 'a', 'b' are missing"),
        ({"a": 1, "b": 2, "d": 3, 4: 5}, "here: keys 4, 'd' are not known"),
        ([("a", 1)], "here: expected keys"),
        (None, "here: expected keys"),
    ],
)
def test_check_keys(data: object, message: str | None) -> None:
    if message is None:
        check_keys(data, "here", required={"a", "b"}, optional={"c"})
        return
    with pytest.raises(InputError, match=message):
        check_keys(data, "here", required={"a", "b"}, optional={"c"})


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


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 5000 + "]" * 5000, "nested too deeply"),
        ('{"a": ' + "1" * 5001 + "}", "5001 digits"),
    ],
)
def test_json_of_unreasonable_depth_or_size(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "a.json"
    file.write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        read_json(file, remedy="download it again")
    assert str(file) in caught.value.message
    file.write_text(text + "\n")
    with pytest.raises(InputError, match="line 1 is damaged"):
        Journal(file).read()


@pytest.mark.parametrize(
    "tail", ["\n".join(f"x{n}: &x{n} [{f'*x{n - 1},' * 9}]" for n in range(1, 20)), "y: &y [*y]"]
)
def test_yaml_aliases_that_expand_without_end(tmp_path: Path, tail: str) -> None:
    file = yaml_file(tmp_path, f"format: {FORMAT}\nx0: &x0 [1]\n{tail}\n")
    with pytest.raises(InputError, match="aliases stand for more than"):
        read_yaml(file, format=FORMAT)


def test_messages_stay_short_and_printable() -> None:
    error = InputError(f"here: {'x' * 10**6!r} is wrong\x1b[2J", remedy="y" * 10**6)
    assert len(str(error)) < 4500
    assert "is wrong\\x1b[2J" in error.message
    assert error.message.startswith("here: 'xxx")


def test_what_a_link_stands_for_is_written_not_the_link(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    for name, target in (("file", "elsewhere/file"), ("folder", "elsewhere/folder")):
        (tmp_path / name).symlink_to(target)
    for content in ("one", "two"):
        write_text(tmp_path / "file", content)
        with folder_written_whole(tmp_path / "folder") as folder:
            (folder / content).touch()
    assert (tmp_path / "elsewhere" / "file").read_text() == "two"
    assert names(tmp_path / "elsewhere" / "folder") == ["two"]
    assert all((tmp_path / name).is_symlink() for name in ("file", "folder"))


def test_what_is_no_regular_file_or_folder_is_left_alone(tmp_path: Path) -> None:
    fifo, loop = tmp_path / "fifo", tmp_path / "loop"
    os.mkfifo(fifo)
    loop.symlink_to(loop)
    for path in (fifo, Path("/dev/null"), loop, tmp_path):
        before = path.lstat()
        with pytest.raises(InputError, match=r"regular file|cannot be written"):
            write_text(path, "text")
        with (
            pytest.raises(InputError, match=r"regular file|cannot be written"),
            written_whole(path),
        ):
            pass
        assert os.path.samestat(path.lstat(), before)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="no folder"), folder_written_whole(tmp_path / "file"):
        pass
