"""``puzzle-search calibrate``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from puzzle_search.cli.options import JsonOption, file_to_write


def calibrate(
    source: Annotated[
        Path | None, typer.Argument(help="Folder of operator tables, or a profile folder.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Cost model to write. Default with --silicon: the GPU's name, here.",
            callback=file_to_write,
        ),
    ] = None,
    silicon: Annotated[
        str | None,
        typer.Option(help="In place of a folder: GPU whose timings aiconfigurator-core publishes."),
    ] = None,
    sheet: Annotated[
        str | None,
        typer.Option(
            help="Cost model whose hardware sheet to use. Default: that of a profile's GPU, or of "
            "--silicon."
        ),
    ] = None,
    derive_from: Annotated[
        str | None,
        typer.Option(help="In place of a folder: cost model calibrated on another device."),
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
    """Fit a GPU's cost model to measurements, and print its error on those held out.

    With --derive-from, carry the constants of another GPU over by the two data sheets instead.
    """
    from puzzle_search.cost.fitting.calibration import calibrate as fit
    from puzzle_search.cost.fitting.calibration import calibrate_silicon
    from puzzle_search.cost.modelled.hardware import CostModel, find_cost_model
    from puzzle_search.errors import InputError
    from puzzle_search.files import write_text
    from puzzle_search.report.residuals import plot_residuals

    if derive_from is not None:
        of_measurements = (source, silicon, gpu, engine, origin, plots)
        if any(given is not None for given in of_measurements):
            raise InputError(
                "--derive-from takes no measurements of the device, nor options for them",
                remedy="give --derive-from, --sheet and --out alone, or leave --derive-from out",
            )
        if sheet is None or out is None:
            raise InputError(
                "--derive-from needs the device to derive for, and a file to write",
                remedy="name its cost model with --sheet, and the file with --out",
            )
        _derive(derive_from, sheet=sheet, out=out, as_json=as_json)
        return
    start = CostModel.from_file(find_cost_model(sheet)) if sheet is not None else None
    if silicon is not None:
        if any(given is not None for given in (source, gpu, origin)):
            raise InputError(
                "--silicon takes neither a folder nor --gpu or --origin",
                remedy="give --silicon with --engine, --sheet, --out and --plots alone",
            )
        result = calibrate_silicon(silicon, start, engines=engine or ())
        out = out or Path(f"{result.model.gpu}.yaml")
    elif source is None:
        raise InputError(
            "there is nothing to calibrate from",
            remedy="name a folder of operator tables or a profile, a GPU with --silicon, or "
            "another GPU's cost model with --derive-from",
        )
    elif out is None:
        raise InputError("there is no file to write", remedy="name it with --out")
    else:
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


def _derive(name: str, *, sheet: str, out: Path, as_json: bool) -> None:
    """Write the cost model of one device derived from another's, and say what it covers."""
    from puzzle_search.cost.modelled.derive import derive
    from puzzle_search.cost.modelled.hardware import CostModel, find_cost_model
    from puzzle_search.files import write_text

    device = CostModel.from_file(find_cost_model(sheet))
    measured = CostModel.from_file(find_cost_model(name))
    model = derive(measured, gpu=device.gpu, sheet=device.sheet)
    write_text(out, model.to_yaml())
    rows = [
        {"engine": name, "dtypes": list(of.dtypes), "evidence": of.step.provenance.evidence}
        for name, of in model.engines.items()
    ]
    if as_json:
        summary = {"gpu": model.gpu, "out": str(out), "derived_from": measured.gpu}
        print(json.dumps(summary | {"engines": rows}))
        return
    print(f"{model.gpu}, derived from {measured.gpu}")
    for row in rows:
        print(f"{row['engine']}: {', '.join(row['dtypes'])}; whole models {row['evidence']}")
    print(f"written to {out}")
