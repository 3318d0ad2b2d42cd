"""Typed access to the fields of a Hugging Face ``config.json``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from puzzle_search.errors import InputError

LARGEST_SIZE = 2**31


class Fields:
    """Typed access to a JSON object, with errors that name the file and the field."""

    def __init__(self, raw: Mapping[str, Any], where: str) -> None:
        self._raw = raw
        self._where = where

    def _wrong(self, key: str, wanted: str) -> InputError:
        value = self._raw.get(key)
        return InputError(
            f"{self._where}: {key} must be {wanted}, not {value!r}", remedy=f"correct {key}"
        )

    def size(self, key: str, default: int | None = None) -> int:
        """A positive whole number."""
        value = self._raw.get(key)
        if value is None and default is not None:
            return default
        if type(value) is not int or not 0 < value < LARGEST_SIZE:
            raise self._wrong(key, "a positive whole number")
        return value

    def positive(self, key: str, default: float) -> float:
        """A positive number."""
        value = self._raw.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e9:
            raise self._wrong(key, "a positive number")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        """True or false."""
        value = self._raw.get(key, default)
        if not isinstance(value, bool):
            raise self._wrong(key, "true or false")
        return value

    def text(self, key: str) -> str:
        """A string."""
        value = self._raw.get(key)
        if not isinstance(value, str):
            raise self._wrong(key, "a string")
        return value

    def optional_text(self, key: str, default: str) -> str:
        """A string, if it is given."""
        return self.text(key) if key in self._raw else default
