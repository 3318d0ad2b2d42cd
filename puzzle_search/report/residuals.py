"""Plots of a calibration's residuals: one picture an engine, one panel an operator and dtype."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from puzzle_search.cost.fitting.calibration import OperatorError
from puzzle_search.files import written_whole
from puzzle_search.packages import installed

_PANELS_IN_ROW = 3


def plot_residuals(errors: Sequence[OperatorError], folder: Path, *, title: str) -> list[Path]:
    """Write ``residuals-<engine>.png`` for every engine.

    Args:
        errors: of a calibration.
        folder: where to write; made if missing.
        title: of the pictures, the GPU's name.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    with installed():
        from matplotlib.figure import Figure
        from matplotlib.ticker import NullFormatter
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for engine in dict.fromkeys(one.engine for one in errors):
        of_engine = [one for one in errors if one.engine == engine]
        columns = min(_PANELS_IN_ROW, len(of_engine))
        rows = -(-len(of_engine) // columns)
        figure = Figure(figsize=(4.2 * columns, 3.0 * rows), layout="constrained")
        figure.suptitle(f"{title}, {engine}: predicted / measured - 1")
        for index, one in enumerate(of_engine, start=1):
            found = one.calibrated
            panel = figure.add_subplot(rows, columns, index)
            for chosen, name, colour, size in (
                (~found.held_out, "fitted", "0.75", 4),
                (found.held_out, "held out", "tab:red", 6),
            ):
                percent = 100 * found.relative[chosen]
                panel.scatter(found.measured_us[chosen], percent, s=size, c=colour, label=name)
            median, p90 = found.median_p90()
            panel.axhline(0, color="black", linewidth=0.8)
            panel.set_xscale("log")
            panel.xaxis.set_minor_formatter(NullFormatter())
            limit = max(30.0, float(np.quantile(np.abs(100 * found.relative), 0.99)))
            panel.set_ylim(-limit, limit)
            name = f"{found.operator}, {found.dtype}: {median:.1%}, p90 {p90:.1%}"
            panel.set_title(name, fontsize="medium")
            panel.set_xlabel("measured, us")
            panel.set_ylabel("error, %")
        figure.axes[0].legend(loc="upper right", fontsize="small")
        path = folder / f"residuals-{engine}.png"
        with written_whole(path) as temporary:
            figure.savefig(temporary, format="png", dpi=110)
        paths.append(path)
    return paths
