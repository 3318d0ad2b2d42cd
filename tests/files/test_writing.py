"""Files are written whole or not at all."""

from __future__ import annotations

import errno
import os
import platform
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from puzzle_search.errors import InputError
from puzzle_search.files import (
    folder_written_whole,
    write_text,
    written_whole,
)

ROOT = Path(__file__).resolve().parents[2]


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
