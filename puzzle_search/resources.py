"""Data files that ship with the package, found the same way in a checkout and in a wheel."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def resource(*parts: str) -> Path:
    """Path of a shipped data file or folder, e.g. ``resource("cost_models", "h100.yaml")``.

    A wheel carries the top-level data folders in ``puzzle_search/_data``; a checkout has them
    beside the package. The path need not exist.
    """
    installed = _PACKAGE.joinpath("_data", *parts)
    return installed if installed.exists() else _PACKAGE.parent.joinpath(*parts)
