"""Documents and the split they belong to.

A document's split depends on its name alone, so that a file that was held out
when the parent was trained stays held out in every later stage and run.
"""

from __future__ import annotations

import hashlib
import json
import sysconfig
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from puzzle_search.errors import InputError

Split = Literal["train", "validation", "test"]

PYTHON_STDLIB = "python-stdlib"
_BUCKETS = 20


@dataclass(frozen=True, kw_only=True)
class Document:
    """One text with the name that decides its split."""

    name: str
    text: str


def split_of(name: str) -> Split:
    """Return the split of a document: 90% train, 5% validation, 5% test, by a hash of its name."""
    # A file name on disk need not be valid UTF-8.
    digest = hashlib.sha256(name.encode(errors="surrogateescape")).digest()
    bucket = int.from_bytes(digest[:8], "big") % _BUCKETS
    return {0: "test", 1: "validation"}.get(bucket, "train")  # type: ignore[return-value]


def load_documents(source: str | Path, split: Split | None = None) -> list[Document]:
    """Read all documents of a source, in a fixed order.

    Args:
        source: ``python-stdlib`` (the sources of the running Python), a folder
            (every ``.py``, ``.txt``, ``.md`` and ``.jsonl`` file below it), or one such file.
            JSONL lines are objects with a ``text`` key.
        split: keep only the documents of this split.

    Raises:
        InputError: the source does not exist or holds no document of that split.
    """
    if source == PYTHON_STDLIB:
        found = _python_stdlib()
    else:
        path = Path(source)
        if not path.exists():
            raise InputError(
                f"data source {path} does not exist",
                remedy=f"name a folder, a .txt/.md/.py/.jsonl file, or {PYTHON_STDLIB!r}",
            )
        found = _files_below(path)
    documents = [d for d in found if d.text and (split is None or split_of(d.name) == split)]
    if not documents:
        which = f"no document in the {split} split" if split else "no text"
        raise InputError(
            f"data source {source} holds {which}", remedy="add documents, or name another source"
        )
    return documents


def _python_stdlib() -> Iterator[Document]:
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


def _files_below(path: Path) -> Iterator[Document]:
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
        try:
            text = json.loads(line)["text"]
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{file}, line {number}: not a JSON object with a 'text' key",
                remedy='write one {"text": "..."} object per line',
            ) from error
        if not isinstance(text, str):
            raise InputError(f"{file}, line {number}: 'text' is not a string", remedy="quote it")
        yield Document(name=f"{name}#{number}", text=text)
