"""The parent's likeliest tokens on disk, so that they are computed once for the same tokens."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

from puzzle_search.checkpoint import open_safetensors, save_tensors
from puzzle_search.files import value_hash
from puzzle_search.score.vocabulary import TopTokens


def read_top_tokens(file: Path, made_from: dict[str, Any]) -> TopTokens | None:
    """The parent's likeliest tokens; None where the file is absent or made from something else.

    Raises:
        InputError: the file is damaged.
    """
    if not file.exists():
        return None
    handle = open_safetensors(file)
    if (handle.metadata() or {}).get("made_from") != value_hash(made_from):
        return None
    return TopTokens(*(handle.get_tensor(field.name) for field in fields(TopTokens)))


def write_top_tokens(top: TopTokens, file: Path, made_from: dict[str, Any]) -> None:
    """Write them, whole or not at all."""
    tensors = {field.name: getattr(top, field.name) for field in fields(TopTokens)}
    save_tensors(tensors, file, {"made_from": value_hash(made_from)})
