"""The way to matplotlib, which an extra installs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from puzzle_search.packages import installed


def open_pyplot() -> Any:
    """Matplotlib's pyplot, drawing into files.

    Raises:
        MissingDependencyError: matplotlib is absent.
    """
    with installed():
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot
    return pyplot


def save_figure(pyplot: Any, figure: Any, file: Path) -> None:
    """Write a figure, its folder too, and close it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=120)
    pyplot.close(figure)
