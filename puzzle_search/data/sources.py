"""Documents of files by kind: text, JSONL, Parquet, a saved ``datasets`` folder.

A record is a text (``text``) or a conversation (``messages``, a list of role and content).
"""

from __future__ import annotations

import sysconfig
import tokenize
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from puzzle_search.errors import InputError
from puzzle_search.files import parse_json
from puzzle_search.packages import installed

_DATASET_FILES = ("dataset_info.json", "dataset_dict.json")
_RECORD = '{"text": "..."} or {"messages": [{"role": "...", "content": "..."}, ...]}'

Message = dict[str, str]


@dataclass(frozen=True, kw_only=True)
class Document:
    """One text, or one conversation, with the name that decides its split.

    Attributes:
        name: the file, and the record in it.
        text: the text; empty for a conversation.
        messages: role and content of each message, which the tokenizer's chat template joins.
    """

    name: str
    text: str
    messages: tuple[Message, ...] = ()


def python_stdlib() -> Iterator[Document]:
    """Sources of the running Python, without site-packages and the large tables."""
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root).as_posix()
        if not path.is_file():
            continue
        if name.startswith(("site-packages/", "dist-packages/", "pydoc_data/")):
            continue
        if name.startswith("encodings/") and path.stat().st_size > 10_000:
            continue
        try:
            with tokenize.open(path) as file:
                yield Document(name=name, text=file.read())
        except (SyntaxError, UnicodeDecodeError):  # deliberately broken test inputs
            continue


def files_below(path: Path) -> Iterator[Document]:
    """Documents of one file, of every known file of a folder, or of a ``datasets`` folder.

    Raises:
        InputError: a file is damaged, or a record is neither a text nor a conversation.
        MissingDependencyError: Parquet or a ``datasets`` folder without the package that reads it.
    """
    if any((path / name).exists() for name in _DATASET_FILES):
        yield from _saved_dataset(path)
        return
    root = path if path.is_dir() else path.parent
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    for file in files:
        name = file.relative_to(root).as_posix()
        if not file.is_file():
            continue
        if file.suffix in {".py", ".txt", ".md"}:
            yield Document(name=name, text=_read_text(file))
        elif file.suffix == ".jsonl":
            yield from _jsonl(file, name)
        elif file.suffix == ".parquet":
            yield from _parquet(file, name)


def _read_text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{file} is not UTF-8 text: {error}", remedy="convert it to UTF-8, or remove it"
        ) from error


def _jsonl(file: Path, name: str) -> Iterator[Document]:
    for number, line in enumerate(_read_text(file).split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{file}, line {number}"
        try:
            record = parse_json(line)
        except ValueError as error:
            raise InputError(f"{where}: not JSON", remedy=f"write one {_RECORD} a line") from error
        yield _document(record, f"{name}#{number}", where)


def _parquet(file: Path, name: str) -> Iterator[Document]:
    with installed():
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    try:
        batches = ParquetFile(file).iter_batches()
        records = (record for batch in batches for record in batch.to_pylist())
        yield from _numbered(records, name, file)
    except (ArrowException, OSError) as error:
        raise InputError(
            f"{file} is truncated or damaged: {error}", remedy="download or write it again"
        ) from error


def _saved_dataset(folder: Path) -> Iterator[Document]:
    with installed():
        from datasets import DatasetDict, load_from_disk
    try:
        saved = load_from_disk(str(folder))
    except (OSError, ValueError, KeyError) as error:
        raise InputError(
            f"{folder} is no whole datasets folder: {error}",
            remedy="write it again with save_to_disk",
        ) from error
    parts = saved if isinstance(saved, DatasetDict) else {"data": saved}
    for part, records in parts.items():
        yield from _numbered(records, part, folder / part)


def _numbered(records: Iterable[Any], name: str, where: Path) -> Iterator[Document]:
    for number, record in enumerate(records, start=1):
        yield _document(record, f"{name}#{number}", f"{where}, row {number}")


def _document(record: object, name: str, where: str) -> Document:
    """A document of a record with a text or with messages.

    Raises:
        InputError: it has neither, or both.
    """
    given = record if isinstance(record, dict) else {}
    text, messages = given.get("text"), given.get("messages")
    if isinstance(text, str) and messages is None:
        return Document(name=name, text=text)
    if text is None and isinstance(messages, list) and all(map(_is_message, messages)):
        kept = ({"role": one["role"], "content": one["content"]} for one in messages)
        return Document(name=name, text="", messages=tuple(kept))
    raise InputError(
        f"{where}: neither a text nor a list of messages with role and content",
        remedy=f"write {_RECORD}",
    )


def _is_message(message: object) -> bool:
    return isinstance(message, dict) and all(
        isinstance(message.get(key), str) for key in ("role", "content")
    )
