"""``puzzle-search plot``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from puzzle_search.cli.options import ShownSources
from puzzle_search.cli.setting import SettingChoice
from puzzle_search.cli.shared import takes


@takes(SettingChoice)
def plot(
    held: SettingChoice,
    what: Annotated[str, typer.Argument(help="frontier, layers or serving.")],
    sources: ShownSources,
    out: Annotated[Path, typer.Option(help="Picture to write: .png or .svg.")],
    child: Annotated[
        str | None, typer.Option(help="Whose layers: a name of the report; else the first's.")
    ] = None,
    unit: Annotated[str, typer.Option(help="Of layers: time, memory or parameters.")] = "time",
) -> None:
    """Write a picture of the report as PNG or SVG, for print."""
    from puzzle_search.report.figures import (
        frontier_figure,
        layers_figure,
        parse_unit,
        parse_what,
        serving_figure,
    )
    from puzzle_search.report.page.data import report_data
    from puzzle_search.report.page.sources import find_sources
    from puzzle_search.report.plots import check_picture

    picture, bars = parse_what(what), parse_unit(unit)
    check_picture(out)
    data = report_data(find_sources(sources, held.asked()))
    if picture == "frontier":
        frontier_figure(data, out)
    elif picture == "serving":
        serving_figure(data, out)
    else:
        layers_figure(data, out, name=child, unit=bars)
    print(f"written to {out}")
