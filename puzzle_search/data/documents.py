"""Documents and the split they belong to.

A document's split depends on its name alone, so that a file that was held out
when the parent was trained stays held out in every later stage and run.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Literal

from puzzle_search.data.sources import Document, files_below, python_stdlib
from puzzle_search.errors import InputError

Split = Literal["train", "validation", "test"]

PYTHON_STDLIB = "python-stdlib"
SELF = "self"
_BUCKETS = 20


def split_of(name: str) -> Split:
    """Return the split of a document: 90% train, 5% validation, 5% test, by a hash of its name."""
    # A file name on disk need not be valid UTF-8.
    digest = hashlib.sha256(name.encode(errors="surrogateescape")).digest()
    bucket = int.from_bytes(digest[:8], "big") % _BUCKETS
    return {0: "test", 1: "validation"}.get(bucket, "train")  # type: ignore[return-value]


def is_self(source: str | Path) -> bool:
    """Whether a source is what the parent itself writes: ``self``, or ``self:TOKENS``."""
    return str(source).partition(":")[0] == SELF


def load_documents(source: str | Path, split: Split | None = None) -> list[Document]:
    """Read all documents of a source, in a fixed order.

    Args:
        source: ``python-stdlib`` (the sources of the running Python), a folder
            (every ``.py``, ``.txt``, ``.md``, ``.jsonl`` and ``.parquet`` file below it), one such
            file, or a folder that ``datasets`` wrote with ``save_to_disk``. Records have a
            ``text``, or ``messages`` with role and content.
        split: keep only the documents of this split.

    Raises:
        InputError: the source does not exist, is damaged, or holds no document of that split.
        MissingDependencyError: a package that reads the source is not installed.
    """
    if source == PYTHON_STDLIB:
        found = python_stdlib()
    elif is_self(source):
        raise InputError(
            "what a parent writes itself is no text to judge its children on",
            remedy=f"name a folder or a file of text, or {PYTHON_STDLIB!r}",
        )
    else:
        path = Path(source)
        if not path.exists():
            raise InputError(
                f"data source {path} does not exist",
                remedy=f"name a folder, a .txt/.md/.py/.jsonl/.parquet file, or {PYTHON_STDLIB!r}",
            )
        found = files_below(path)
    documents = [
        document
        for document in found
        if (document.text or document.messages)
        and (split is None or split_of(document.name) == split)
    ]
    if not documents:
        which = f"no document in the {split} split" if split else "no text"
        raise InputError(
            f"data source {source} holds {which}", remedy="add documents, or name another source"
        )
    return documents
