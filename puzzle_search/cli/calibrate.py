"""``puzzle-search calibrate``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from puzzle_search.cli.options import JsonOption


def calibrate(
    source: Annotated[Path, typer.Argument(help="Folder of operator tables, or a profile folder.")],
    out: Annotated[Path, typer.Option(help="Cost model to write.")],
    sheet: Annotated[
        str | None,
        typer.Option(
            help="Cost model whose hardware sheet to use. Default: that of a profile's GPU."
        ),
    ] = None,
    gpu: Annotated[str | None, typer.Option(help="GPU as the tables name it.")] = None,
    engine: Annotated[
        list[str] | None, typer.Option(help="Engine of the tables; may be repeated. Default: all.")
    ] = None,
    origin: Annotated[
        str | None, typer.Option(help="Where the measurements come from, for the record.")
    ] = None,
    plots: Annotated[Path | None, typer.Option(help="Folder for plots of the residuals.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Fit a GPU's cost model to measurements, and print its error on those held out."""
    from puzzle_search.cost.calibration import calibrate as fit
    from puzzle_search.cost.hardware import CostModel, find_cost_model
    from puzzle_search.files import write_text
    from puzzle_search.report.residuals import plot_residuals

    start = CostModel.from_file(find_cost_model(sheet)) if sheet is not None else None
    result = fit(source, start, gpu=gpu, engines=engine or (), source=origin)
    pictures = plot_residuals(result.errors, plots, title=result.model.gpu) if plots else []
    write_text(out, result.model.to_yaml())
    rows = [error.as_dict() for error in result.errors]
    if as_json:
        print(json.dumps({"gpu": result.model.gpu, "out": str(out), "errors": rows}))
        return
    print(f"{'held-out error':44}{'points':>7}{'median':>8}{'p90':>8}   datasheet alone")
    for row in rows:
        name = f"{row['engine']} {row['operator']}, {row['dtype']}"
        print(
            f"{name:44}{row['held_out']:7}{row['median']:8.1%}{row['p90']:8.1%}"
            f"{row['datasheet_median']:11.1%}{row['datasheet_p90']:8.1%}"
        )
    for path in (out, *pictures):
        print(f"written to {path}")
