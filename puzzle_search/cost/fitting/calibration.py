"""Calibrate a cost model: from operator tables or a profile to constants and their errors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from puzzle_search.cost.fitting.calibrate import calibrate_tables
from puzzle_search.cost.fitting.calibrate_profile import ENGINE, calibrate_profile, compare_profile
from puzzle_search.cost.fitting.operator_tables import OperatorTables, compare, gpus_and_engines
from puzzle_search.cost.fitting.residuals import Residuals
from puzzle_search.cost.fitting.silicon import Silicon
from puzzle_search.cost.measured.profile import Profile
from puzzle_search.cost.modelled.hardware import CostModel, device_cost_model, find_cost_model
from puzzle_search.cost.modelled.roofline import roofline_engine
from puzzle_search.errors import InputError


@dataclass(frozen=True, kw_only=True)
class OperatorError:
    """How far one engine's operator is from its timings, and how far the data sheet alone is."""

    engine: str
    calibrated: Residuals
    datasheet: Residuals

    def as_dict(self) -> dict[str, Any]:
        """Errors as they are written in results; all are of the held-out points."""
        median, p90 = self.calibrated.median_p90()
        datasheet_median, datasheet_p90 = self.datasheet.median_p90()
        return {
            "engine": self.engine,
            "operator": self.calibrated.operator,
            "dtype": self.calibrated.dtype,
            "points": len(self.calibrated.held_out),
            "held_out": int(self.calibrated.held_out.sum()),
            "median": round(median, 4),
            "p90": round(p90, 4),
            "datasheet_median": round(datasheet_median, 4),
            "datasheet_p90": round(datasheet_p90, 4),
        }


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """A fitted cost model with its errors."""

    model: CostModel
    errors: list[OperatorError]


def calibrate(
    folder: Path,
    start: CostModel | None = None,
    *,
    gpu: str | None = None,
    engines: Sequence[str] = (),
    source: str | None = None,
) -> Calibration:
    """Fit a cost model to a folder of operator tables, or to a profile.

    Args:
        folder: tables in the columns of aiconfigurator, or a folder of ``puzzle-search profile``.
        start: its sheet is used, and its step constants for operator tables; for a profile by
            default the shipped model of the GPU that it names.
        gpu: which GPU of the tables; needed where they hold several.
        engines: which engines of the tables, all of them by default.
        source: where the measurements come from; the folder's name by default.

    Raises:
        InputError: the folder is neither, or something named is not in it, or missing.
    """
    told = source or folder.resolve().name
    if (folder / "profile.yaml").exists():
        profile = Profile.from_folder(folder)
        return _from_profile(profile, start or _own_sheet(profile, folder), source=told)
    if start is None:
        raise InputError(
            "operator tables do not name a data sheet", remedy="name a cost model with --sheet"
        )
    return _from_tables(folder, start, gpu=gpu, engines=engines, source=told)


def _own_sheet(profile: Profile, folder: Path) -> CostModel:
    device = profile.sidecar["device"]
    model = device_cost_model(device["name"], device["memory_bytes"])
    if model is None:
        raise InputError(
            f"no cost model ships for {device['name']}, the device of {folder}",
            remedy="name one with its data sheet by --sheet",
        )
    return model


def _from_profile(profile: Profile, start: CostModel, *, source: str) -> Calibration:
    device, date = profile.sidecar["device"]["name"], profile.sidecar["date"]
    model = calibrate_profile(profile, start, source=f"{source}; {device}, {date}")
    ideal = replace(model, engines={ENGINE: roofline_engine(model.sheet)})
    pairs = zip(compare_profile(model, profile), compare_profile(ideal, profile), strict=True)
    errors = [OperatorError(engine=ENGINE, calibrated=a, datasheet=b) for a, b in pairs]
    return Calibration(model=model, errors=errors)


def _from_tables(
    folder: Path, start: CostModel, *, gpu: str | None, engines: Sequence[str], source: str
) -> Calibration:
    timed = gpus_and_engines(folder)
    chosen = gpu or next(iter(timed))
    if chosen not in timed or (gpu is None and len(timed) > 1):
        raise InputError(
            f"{folder} holds timings of {', '.join(timed)}"
            + (f", not of {gpu}" if gpu is not None else ""),
            remedy=f"name one with --gpu: {', '.join(timed)}",
        )
    tables = {
        engine: OperatorTables.from_folder(folder, gpu=chosen, framework=engine)
        for engine in engines or timed[chosen]
    }
    model = calibrate_tables(tables, start, source=f"{source}, {chosen}")
    return Calibration(model=model, errors=table_errors(model, tables))


def calibrate_silicon(
    gpu: str, start: CostModel | None = None, *, engines: Sequence[str] = ()
) -> Calibration:
    """Fit a cost model to the timings of a GPU in the installed `aiconfigurator-core`.

    Args:
        gpu: its name there, or that of its shipped cost model.
        start: its sheet and step constants are used; by default the shipped model of the GPU.
        engines: all that were timed by default.

    Raises:
        InputError: the package is not installed or lacks the GPU or an engine, or nothing ships
            for the GPU.
    """
    silicon = Silicon.installed(gpu)
    start = start or CostModel.from_file(find_cost_model(silicon.gpu))
    tables = {engine: silicon.tables(engine) for engine in engines or silicon.engines}
    model = calibrate_tables(tables, start, source=f"{silicon.source}, {silicon.gpu}")
    return Calibration(model=model, errors=table_errors(model, tables))


def table_errors(model: CostModel, tables: dict[str, OperatorTables]) -> list[OperatorError]:
    """Errors of any cost model on operator tables, by engine."""
    ideal = roofline_engine(model.sheet)
    return [
        OperatorError(engine=engine, calibrated=calibrated, datasheet=datasheet)
        for engine, rows in tables.items()
        for calibrated, datasheet in zip(
            compare(model.engine(engine), model.sheet, rows),
            compare(ideal, model.sheet, rows),
            strict=True,
        )
    ]
