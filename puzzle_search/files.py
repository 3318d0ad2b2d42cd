"""Files read strictly and written whole: YAML, JSON lines, hashes, atomic renames."""

from __future__ import annotations

import contextlib
import csv
import errno
import glob
import hashlib
import io
import json
import os
import platform
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from yaml.constructor import ConstructorError

from puzzle_search.errors import InputError

# libyaml reads ten times faster; the pure-Python loader gives the same result.
if TYPE_CHECKING:
    from yaml import SafeLoader as _SafeLoader
else:
    _SafeLoader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

_MAX_DEPTH = 100
_TEMPORARY, _OLD = ".tmp", ".old"


class _Loader(_SafeLoader):
    """Safe YAML; a repeated key, or a scalar that its type cannot hold, is a YAML error too."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        # What PyYAML's own constructors let through: `2001-99-99`, `!!bool x`, `!!float ''` ...
        except (ValueError, LookupError, AttributeError, OverflowError) as error:
            raise ConstructorError(
                None, None, f"{node.value!r:.60} is not a valid value", node.start_mark
            ) from error

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        given: set[tuple[str, str]] = set()
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if not isinstance(key, yaml.ScalarNode):
                continue
            if (key.tag, key.value) in given:
                raise ConstructorError(
                    None, None, f"key {key.value!r} is given twice", key.start_mark
                )
            given.add((key.tag, key.value))
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        return mapping


def _parse_yaml(text: str) -> Any:
    # Composing is recursive inside libyaml: nesting without a limit would crash the process.
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > _MAX_DEPTH:
                raise yaml.YAMLError(f"nested deeper than {_MAX_DEPTH} levels")
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
    return _Loader(text).get_single_data()


def read_text(path: str | Path, *, remedy: str) -> str:
    """Read a UTF-8 file.

    Raises:
        InputError: it is missing, unreadable or not text.
    """
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        missing = isinstance(error, FileNotFoundError)
        reason = "does not exist" if missing else f"cannot be read: {error}"
        raise InputError(f"{path} {reason}", remedy=remedy) from error


def read_yaml(path: str | Path, *, format: str) -> dict[str, Any]:
    """Read a YAML mapping whose ``format`` key must be the one given.

    Raises:
        InputError: missing file, YAML error, or another format.
    """
    text = read_text(path, remedy=f"give the path of a {format} file")
    try:
        data = _parse_yaml(text)
    except yaml.YAMLError as error:
        raise InputError(
            f"{path} is not valid YAML: {error}", remedy="correct that line"
        ) from error
    found = data.get("format") if isinstance(data, dict) else None
    if not isinstance(data, dict) or found != format:
        raise InputError(
            f"{path}: format is {found!r}, expected {format!r}",
            remedy=f"start the file with 'format: {format}', or name another file",
        )
    return data


def read_json(path: str | Path, *, remedy: str) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        InputError: missing file, JSON error, or no object.
    """
    try:
        data = json.loads(read_text(path, remedy=remedy))
    except json.JSONDecodeError as error:
        raise InputError(f"{path} is not JSON: {error}", remedy=remedy) from error
    if not isinstance(data, dict):
        raise InputError(f"{path} is not a JSON object", remedy=remedy)
    return data


def check_keys(
    data: object, where: str | Path, *, required: set[str], optional: set[str] | None = None
) -> None:
    """Check the keys of a mapping.

    Raises:
        InputError: it is no mapping, a key is missing, or one is not known.
    """
    if not isinstance(data, Mapping):
        raise InputError(f"{where}: expected keys {sorted(required)}", remedy="write a mapping")
    allowed = required | (optional or set())
    missing, unknown = required - data.keys(), data.keys() - allowed
    if missing:
        raise InputError(f"{where}: {_names(missing)} missing", remedy="add it")
    if unknown:
        raise InputError(
            f"{where}: {_names(unknown)} not known",
            remedy=f"known keys: {', '.join(sorted(allowed))}",
        )


def _names(keys: set[Any]) -> str:
    quoted = ", ".join(repr(key) for key in sorted(keys, key=str))
    return f"{'key' if len(keys) == 1 else 'keys'} {quoted} {'is' if len(keys) == 1 else 'are'}"


def read_csv_rows(path: str | Path, columns: Sequence[str], *, remedy: str) -> list[dict[str, str]]:
    """Rows of a CSV file with exactly these columns; the first row of data is row 2.

    Raises:
        InputError: the file cannot be read (``remedy`` says what to name), or has another header.
    """
    reader = csv.DictReader(io.StringIO(read_text(path, remedy=remedy)))
    if reader.fieldnames != list(columns):
        raise InputError(
            f"{path}: columns are {reader.fieldnames}, expected {list(columns)}",
            remedy="correct the header",
        )
    return list(reader)


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


def write_text(path: str | Path, text: str) -> None:
    """Write a file under a temporary name, then rename it: whole or not at all.

    Raises:
        InputError: the disk is full.
    """
    target = Path(path)
    with full_disk_reported(target):
        target.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(target) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def written_whole(target: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``target``; rename it into place when the block ends well.

    Raises:
        InputError: the disk is full.
    """
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
        InputError: the disk is full.
    """
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


def file_hash(path: str | Path) -> str:
    """SHA-256 of a file's content, 16 hex digits."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def value_hash(value: object) -> str:
    """SHA-256 of a JSON-serialisable value, 16 hex digits."""
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class Journal:
    """Append-only JSON lines: every line is on disk before the next unit of work begins.

    A line cut off by a crash is dropped on reading; a damaged line before the end is an error.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def read(self) -> list[dict[str, Any]]:
        """All whole entries.

        Raises:
            InputError: a line other than the last is not a JSON object.
        """
        if not self.path.exists():
            return []
        lines = self.path.read_bytes().split(b"\n")
        entries = []
        for number, line in enumerate(lines[:-1], start=1):
            try:
                entry = json.loads(line)
                if not isinstance(entry, dict):
                    raise ValueError("not a JSON object")
            except ValueError as error:  # also bytes that are no text
                raise InputError(
                    f"{self.path}, line {number} is damaged: {error}",
                    remedy="delete the file to begin this stage anew",
                ) from error
            entries.append(entry)
        if lines[-1]:
            with self.path.open("r+b") as file:
                file.truncate(len(b"\n".join(lines[:-1])) + (1 if len(lines) > 1 else 0))
        return entries

    def append(self, entry: Mapping[str, Any]) -> None:
        """Write one entry and wait until it is on disk.

        Raises:
            InputError: the disk is full.
        """
        with full_disk_reported(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab") as file:
                file.write(json.dumps(entry).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())


def resume_journal(journal: Journal, made_from: dict[str, Any]) -> list[dict[str, Any]]:
    """The results in a journal whose first line says what they were made from.

    An empty journal is begun with that line.

    Args:
        journal: first line ``{"made_from": ...}``, then one result a line.
        made_from: settings and content hashes that every result depends on.

    Raises:
        InputError: the journal was made from something else.
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
    return lines[1:]
