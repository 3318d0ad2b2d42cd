"""Pictures for print: matplotlib, which an extra installs, and the few kinds that reports draw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from puzzle_search.errors import InputError
from puzzle_search.files import full_disk_reported, written_whole
from puzzle_search.packages import installed

# Those of the page in light mode (`page/page.css`).
INK, MUTED, LINE = "#1c2126", "#626c76", "#dfe3e6"
PARENT, CHILD = "#8b949d", "#0b7a75"
CHANGES = {
    "kept": "#93a0ad",
    "windowed": "#2a9d8f",
    "reduced": "#2f6fd0",
    "linear": "#cc8100",
    "dropped": "#cf3f4f",
}
_CURVES = (PARENT, CHILD, *(CHANGES[name] for name in ("reduced", "linear", "dropped")), INK)
_SUFFIXES = (".png", ".svg")
_STYLE = {
    "font.size": 9, "axes.titlesize": 9, "axes.labelsize": 9, "axes.labelcolor": MUTED,
    "axes.edgecolor": LINE, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
    "axes.axisbelow": True, "grid.color": LINE, "grid.linewidth": 0.6, "xtick.color": MUTED,
    "ytick.color": MUTED, "xtick.labelsize": 8, "ytick.labelsize": 8, "text.color": INK,
    "svg.fonttype": "none", "savefig.dpi": 220, "figure.constrained_layout.use": True,
}  # fmt: skip
_WIDTH = 6.9  # inches, the text of a page
_FEW = 12  # points of a curve whose batch sizes are all told; otherwise that of the fastest is


@dataclass(frozen=True, kw_only=True)
class Mark:
    """A named point of a trade-off."""

    x: float
    y: float
    name: str
    is_parent: bool = False


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


def check_picture(file: Path) -> None:
    """Refuse files that are no pictures before anything is computed.

    Raises:
        InputError: the suffix is none of a format for print.
    """
    if file.suffix.lower() not in _SUFFIXES:
        raise InputError(
            f"{file} is no name of a picture", remedy=f"end it in {' or '.join(_SUFFIXES)}"
        )


class Picture:
    """A figure that is written whole when its block ends well.

    Args:
        file: PNG or SVG.
        rows: panels, one below the other, with a common horizontal axis.
        height: inches.
        title: what is drawn, and how it is known.
    """

    def __init__(self, file: Path, *, rows: int = 1, height: float = 3.6, title: str = "") -> None:
        self._file, self._rows, self._height, self._title = file, rows, height, title

    def __enter__(self) -> Any:
        """The panels; one alone stands for itself."""
        self._pyplot = open_pyplot()
        self._context = self._pyplot.rc_context(_STYLE)
        self._context.__enter__()
        size = (_WIDTH, self._height)
        self._figure, panels = self._pyplot.subplots(self._rows, figsize=size, sharex=True)
        self._figure.suptitle(self._title, fontsize=9, color=MUTED, x=0.01, ha="left")
        return panels

    def __exit__(self, kind: object, *_: object) -> None:
        """Write the figure and forget it."""
        try:
            if kind is None:
                with full_disk_reported(self._file):
                    self._file.parent.mkdir(parents=True, exist_ok=True)
                with written_whole(self._file) as temporary:
                    self._figure.savefig(temporary, format=self._file.suffix[1:].lower())
        finally:
            self._pyplot.close(self._figure)
            self._context.__exit__(None, None, None)


def draw_trade_off(
    panel: Any, lines: Sequence[Sequence[tuple[float, float, bool]]], marks: Sequence[Mark] = ()
) -> None:
    """Damage, less of it further up, against what it is traded for.

    Args:
        panel: where to draw.
        lines: points of frontiers, and whether each is proven.
        marks: named points.
    """
    for points in lines:
        panel.plot(*list(zip(*points, strict=True))[:2], color=CHILD, alpha=0.45, linewidth=1.5)
        for proven, face in ((True, CHILD), (False, "white")):
            shown = [(x, y) for x, y, is_proven in points if is_proven == proven]
            if shown:
                x, y = zip(*shown, strict=True)
                size = 9 if len(points) <= 80 else 3
                panel.scatter(x, y, s=size, color=CHILD, facecolor=face, zorder=3,
                              label=None if proven else "not proven")  # fmt: skip
    for mark in marks:
        panel.scatter([mark.x], [mark.y], s=32, zorder=4, marker="s" if mark.is_parent else "D",
                      color=PARENT if mark.is_parent else INK)  # fmt: skip
    panel.invert_yaxis()
    panel.xaxis.set_major_formatter("{x:,.5g}")
    panel.margins(x=0.08, y=0.1)
    panel.set_xlim(left=min(0.0, panel.get_xlim()[0]) if marks else None)
    _name(panel, marks)
    if any(not proven for points in lines for *_, proven in points):
        panel.legend(frameon=False)


def _name(panel: Any, marks: Sequence[Mark]) -> None:
    """Names beside marks; of two that stand close, the second goes to the other side."""
    taken: list[tuple[float, float]] = []
    for mark in marks:
        x, y = panel.transAxes.inverted().transform(panel.transData.transform((mark.x, mark.y)))
        crowded = any(abs(x - other) < 0.15 and abs(y - height) < 0.06 for other, height in taken)
        taken.append((x, y))
        offset, side = ((-7, -9), "right") if crowded else ((7, 5), "left")
        panel.annotate(mark.name, (mark.x, mark.y), xytext=offset, textcoords="offset points",
                       ha=side, fontsize=8.5)  # fmt: skip


def draw_rates(panel: Any, curves: Mapping[str, Sequence[tuple[float, float, int]]]) -> None:
    """Tokens per second of a GPU against those of a user.

    Args:
        panel: where to draw.
        curves: by name of the model, the parent first: user's rate, GPU's rate, batch size.
    """
    for number, (name, points) in enumerate(curves.items()):
        colour = _CURVES[number % len(_CURVES)]
        users, rates, batches = zip(*points, strict=True)
        panel.plot(users, rates, "o-", color=colour, linewidth=1.5, markersize=2.5, label=name)
        for index in range(len(points)) if len(points) <= _FEW else [int(np.argmax(rates))]:
            panel.annotate(str(batches[index]), (users[index], rates[index]), xytext=(4, 3),
                           textcoords="offset points", fontsize=7, color=colour)  # fmt: skip
    panel.set_xlim(left=0)
    panel.set_ylim(bottom=0)
    panel.set_xlabel("tok/s/user (1 / TPOT); small numbers are batch sizes")
    panel.set_ylabel("tok/s/GPU")
    panel.yaxis.set_major_formatter("{x:,.0f}")
    panel.legend(frameon=False)
