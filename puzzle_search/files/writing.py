"""Files and folders written under a temporary name and renamed when whole."""

from __future__ import annotations

import contextlib
import errno
import glob
import os
import platform
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from puzzle_search.errors import InputError

_STREAMS = ("-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1")
_TEMPORARY, _OLD = ".tmp", ".old"


@contextlib.contextmanager
def full_disk_reported(
    path: Path, remedy: str = "free some, then run the same command again"
) -> Iterator[None]:
    """Say that the disk of a path is full, in place of the system's error.

    Raises:
        InputError: no space is left, or none of the user's share of it.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise InputError(f"{path}: no space is left on the disk", remedy=remedy) from error


def is_stream(path: Path) -> bool:
    """Whether a path stands for standard output."""
    return str(path) in _STREAMS


def check_writable(target: Path, *, folder: bool = False) -> Path:
    """Where a file or folder is to be written: what a symbolic link stands for, not the link.

    Raises:
        InputError: something of another kind is there, such as a device, which a rename would
            take away; or its folder cannot be written to.
    """
    if is_stream(target):
        raise InputError(f"{target} cannot take several files", remedy="name a file or folder")
    try:
        written = target.resolve()
        taken = written.exists() and not (written.is_dir() if folder else written.is_file())
    except (OSError, RuntimeError) as error:  # links in a circle
        raise InputError(f"{target} cannot be written: {error}", remedy="name another") from error
    if taken:
        kind = "folder" if folder else "regular file"
        found = "folder" if written.is_dir() else "file" if written.is_file() else "device or pipe"
        raise InputError(f"{target} is a {found}, no {kind}", remedy=f"name a new or an old {kind}")
    above = next(path for path in written.parents if path.exists())
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        raise InputError(
            f"{target} cannot be written: {above} is no folder that you may write to",
            remedy="name another place, or check its permissions",
        )
    return written


def check_own_folder(folder: Path, marks: Sequence[str], what: str) -> None:
    """Check that a folder is new, empty, or what this package made.

    Args:
        folder: to write into.
        marks: patterns of names, any of which one of this package has in it.
        what: it should be, for people.

    Raises:
        InputError: it holds something else, or is no folder.
    """
    written = check_writable(folder, folder=True)
    own = (any(written.glob(mark)) for mark in marks)
    if written.exists() and any(written.iterdir()) and not any(own):
        raise InputError(f"{folder} exists and is not {what}", remedy="name an empty or new folder")


def write_text(path: str | Path, text: str) -> None:
    """Write a file under a temporary name, then rename it: whole or not at all.

    ``-`` and ``/dev/stdout`` are standard output.

    Raises:
        InputError: the disk is full, or no regular file is there.
    """
    if is_stream(Path(path)):
        sys.stdout.write(text)
        return
    target = check_writable(Path(path))
    with full_disk_reported(target):
        target.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(target) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def written_whole(target: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``target``; rename it into place when the block ends well.

    Raises:
        InputError: the disk is full, or no regular file is there.
    """
    target = check_writable(target)
    temporary = _temporary_beside(target)
    try:
        with full_disk_reported(target):
            yield temporary
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def folder_written_whole(target: Path) -> Iterator[Path]:
    """Yield a temporary folder beside ``target``; it replaces it when the block ends well.

    Raises:
        InputError: the disk is full, or no folder is there.
    """
    target = check_writable(target, folder=True)
    with full_disk_reported(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = _temporary_beside(target)
        temporary.mkdir()
    try:
        with full_disk_reported(target):
            yield temporary
        # Renamed aside first: a kill while the old folder is deleted must not leave half of it.
        old = temporary.with_suffix(_OLD)
        if target.exists():
            target.replace(old)
        temporary.replace(target)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _temporary_beside(target: Path) -> Path:
    """A name that tells whose it is; what killed processes of this machine left is cleared away."""
    stem = f".{target.name}.{platform.node()}"
    for suffix in (_OLD, _TEMPORARY):
        for left in target.parent.glob(f"{glob.escape(stem)}.*{suffix}"):
            process = left.name.removeprefix(f"{stem}.").removesuffix(suffix)
            if not process.isdecimal() or (int(process) != os.getpid() and _is_alive(int(process))):
                continue
            if suffix == _OLD and not target.exists():
                left.replace(target)  # the process died between two renames
            elif left.is_dir():
                shutil.rmtree(left, ignore_errors=True)
            else:
                left.unlink(missing_ok=True)
    return target.with_name(f"{stem}.{os.getpid()}{_TEMPORARY}")


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
