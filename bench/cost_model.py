"""How far the cost models of the GPUs are from measurements and from published throughput.

Prints, with the error of the data sheet alone beside each: held-out errors of every operator of
every GPU, engine and dtype that was timed, how far constants of the H100 carried over are, the
order of the 54 block variants, and every published row of whole models with the error that users
get; then one JSON line. With ``--write`` it fits the operators of all GPUs anew, and the step
constants of the H100 and the H200. Timings are those of aiconfigurator-core (the extra
``silicon``).

    python bench/cost_model.py --data DIR [--gpu h100 ...] [--write cost_models] [--results FILE]
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))

from cost_model_throughput import fit_steps, parent_config, throughput
from cost_model_variants import MeasuredOperators, ModelOperators, agreement, is_spike

from puzzle_search.arch import SearchSpace
from puzzle_search.cost.fitting.calibrate import calibrate_tables
from puzzle_search.cost.fitting.calibrate_engine import with_step
from puzzle_search.cost.fitting.calibration import table_errors
from puzzle_search.cost.fitting.operator_tables import OperatorTables, compare
from puzzle_search.cost.fitting.silicon import Silicon
from puzzle_search.cost.modelled.constants import Provenance, StepConstants
from puzzle_search.cost.modelled.hardware import CostModel, find_cost_model
from puzzle_search.cost.modelled.roofline import roofline_engine
from puzzle_search.cost.modelled.transfer import transfer
from puzzle_search.errors import InputError
from puzzle_search.files import write_text
from puzzle_search.resources import resource

REPOSITORY = Path(__file__).resolve().parent.parent
GPUS = (
    *("a100", "h100", "h200", "b200", "b300", "gb200", "gb300"),
    *("l40s", "rtx_pro_6000", "b60"),
)

STAND_IN = Provenance(
    evidence="reconstructed",
    source="no whole model was timed: those of TensorRT-LLM on the H100, or on this GPU, stand in",
    error_median=None,
    error_p90=None,
)

Tables = dict[str, dict[str, OperatorTables]]


def read_tables(gpus: Sequence[str] = GPUS) -> Tables:
    """Operator timings by GPU and engine.

    Raises:
        InputError: the package is not installed.
    """
    found = {gpu: Silicon.installed(gpu) for gpu in gpus}
    return {
        gpu: {of: silicon.tables(of) for of in silicon.engines} for gpu, silicon in found.items()
    }


def fit(data: Path, tables: Tables) -> dict[str, CostModel]:
    """Fit all GPUs anew: operators to timings, the step of TensorRT-LLM to published rows."""
    fitted = {}
    for gpu, timed in tables.items():
        silicon = Silicon.installed(gpu)
        start = CostModel.from_file(find_cost_model(gpu))
        fitted[gpu] = calibrate_tables(timed, start, source=f"{silicon.source}, {silicon.gpu}")
    return with_steps(fitted, fit_steps(data, fitted))


def with_steps(
    models: dict[str, CostModel], steps: dict[str, StepConstants]
) -> dict[str, CostModel]:
    """The models with the steps fitted; elsewhere those of the H100 stand in.

    A GPU of another vendor keeps its own constants.
    """
    found = {}
    for gpu, model in models.items():
        of_gpu = steps.get(gpu, steps["h100"])
        for engine in model.engines:
            if gpu in steps and engine == "trtllm":
                model = with_step(model, engine, of_gpu)
            elif model.sheet.vendor == "nvidia":
                caps = {} if engine == "trtllm" else {"max_batch": 1024}
                model = with_step(model, engine, replace(of_gpu, provenance=STAND_IN, **caps))
        found[gpu] = model
    return found


def operator_table(models: dict[str, CostModel], tables: Tables) -> list[dict[str, Any]]:
    """Held-out errors of every operator; prints them, attention by KV heads too."""
    print(f"{'held-out error':46}{'median':>8}{'p90':>8}  datasheet alone   median/p90 by KV heads")
    found = []
    for gpu, model in models.items():
        for error in table_errors(model, tables[gpu]):
            row: dict[str, Any] = {"gpu": gpu} | error.as_dict()
            residuals = error.calibrated
            row["by_kv_heads"] = {
                int(heads): [
                    round(value, 4)
                    for value in residuals.median_p90(
                        residuals.held_out & (residuals.kv_heads == heads)
                    )
                ]
                for heads in (8, 4, 2, 1)
                if (residuals.kv_heads == heads).any()
            }
            shown = "  ".join(f"{h}: {m:.1%}/{p:.1%}" for h, (m, p) in row["by_kv_heads"].items())
            name = f"{gpu} {row['engine']} {row['operator']} {row['dtype']}"
            print(
                f"{name:46}{row['median']:8.1%}{row['p90']:8.1%}"
                f"{row['datasheet_median']:9.1%}{row['datasheet_p90']:7.1%}  {shown}"
            )
            found.append(row)
    return found


def transfer_table(models: dict[str, CostModel], tables: Tables) -> list[dict[str, Any]]:
    """How far H100 constants carried over by the data sheets are from other GPUs' timings."""
    base = CostModel.from_file(find_cost_model("h100"))
    print(f"\n{'H100 constants on another data sheet':46}{'median':>8}{'p90':>8}")
    found = []
    for gpu, engine in [(gpu, engine) for gpu, timed in tables.items() for engine in timed]:
        sheet = models[gpu].sheet
        if gpu == base.gpu or sheet.vendor != base.sheet.vendor:
            continue
        carried = transfer(base.engine(engine), name="h100", base=base.sheet, sheet=sheet)
        for residuals in compare(carried, sheet, tables[gpu][engine]):
            median, p90 = residuals.median_p90(np.ones_like(residuals.held_out))
            name = f"{gpu} {engine} {residuals.operator} {residuals.dtype}"
            print(f"{name:46}{median:8.1%}{p90:8.1%}")
            found.append(
                {
                    "gpu": gpu,
                    "engine": engine,
                    "operator": residuals.operator,
                    "dtype": residuals.dtype,
                    "median": round(median, 4),
                    "p90": round(p90, 4),
                }
            )
    return found


def variants_table(models: dict[str, CostModel], tables: Tables) -> list[dict[str, Any]]:
    """Order and relative cost of the 54 variants, against sums of measured operators."""
    config = parent_config()
    space = SearchSpace.from_file(resource("examples", "llama-3.1-70b", "space.yaml"), config)
    names = (space.all_variants("attention"), space.all_variants("ffn"))
    print(f"\n{'54 variants, 5 scenarios, TP 1/2/4':34}{'least tau':>10}{'p90':>8}", end="")
    print("  points of the parent   without spikes: tau, p90, spikes   datasheet alone: tau, p90")
    found = []
    for gpu, model in models.items():
        for engine, timed in tables[gpu].items():
            for dtype in timed.dtypes:
                try:
                    truth, smooth = (
                        MeasuredOperators(timed, dtype, config.hidden_size, spikes=spikes)
                        for spikes in (True, False)
                    )
                except InputError as error:
                    print(f"{f'{gpu} {engine} {dtype}':34} not compared: {error}")
                    continue
                fitted = ModelOperators(model.engine(engine), model.sheet, dtype, truth.batch)
                plain = ModelOperators(
                    roofline_engine(model.sheet), model.sheet, dtype, truth.batch
                )
                said, calm, ideal = (
                    agreement(measured, of, config, *names)
                    for measured, of in ((truth, fitted), (smooth, fitted), (truth, plain))
                )
                spikes = float(is_spike(timed.gemm_rows(dtype)).mean())
                print(
                    f"{f'{gpu} {engine} {dtype}':34}{said.tau_least:10.3f}{said.points_p90:8.2f}"
                    f"{'':23}{calm.tau_least:10.3f}{calm.points_p90:8.2f}{spikes:8.1%}"
                    f"{ideal.tau_least:14.3f}{ideal.points_p90:8.2f}"
                )
                found.append(
                    {"gpu": gpu, "engine": engine, "dtype": dtype, "batch": truth.batch}
                    | said.as_dict()
                    | {"spikes": round(spikes, 4)}
                    | {f"without_spikes_{name}": value for name, value in calm.as_dict().items()}
                    | {f"datasheet_{name}": value for name, value in ideal.as_dict().items()}
                )
    return found


def faster_than_hardware(models: dict[str, CostModel], tables: Tables) -> int:
    """How many timed points are predicted below the time of the data sheet's roofline.

    Without attention, whose roofline counts whole tiles and KV blocks, and rope: that is no limit.
    """
    return sum(
        int(np.sum(error.calibrated.predicted_us < error.datasheet.predicted_us * (1 - 1e-9)))
        for gpu, model in models.items()
        for error in table_errors(model, tables[gpu])
        if "attention" not in error.calibrated.operator
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=REPOSITORY.parent / "shared" / "data")
    parser.add_argument("--gpu", nargs="*", default=GPUS, choices=GPUS, help="all by default")
    parser.add_argument("--write", type=Path, help="fit anew and write into this folder")
    parser.add_argument("--results", type=Path, help="write the summary here, too")
    options = parser.parse_args()
    try:
        tables = read_tables(options.gpu)
    except InputError as error:
        print(f"skipped: {error} ({error.remedy})")
        return
    if options.write:
        for gpu, model in fit(options.data, tables).items():
            write_text(options.write / f"{gpu}.yaml", model.to_yaml())
    folder = options.write or resource("cost_models")
    models = {gpu: CostModel.from_file(folder / f"{gpu}.yaml") for gpu in options.gpu}

    summary: dict[str, Any] = {"benchmark": "cost_model"}
    summary["operators"] = operator_table(models, tables)
    summary["faster_than_hardware"] = faster_than_hardware(models, tables)
    summary["transfer_of_h100"] = transfer_table(models, tables)
    summary["variants"] = variants_table(models, tables)
    if not (options.data / "published_throughput.csv").exists():
        print(f"no published throughput in {options.data} (name its folder with --data)")
    elif {"h100", "h200"} <= models.keys():
        summary["throughput"] = throughput(options.data, models)
    print(json.dumps(summary))
    if options.results:
        told = {
            "date": datetime.date.today().isoformat(),
            "evidence": "published timings and throughput against fitted constants",
            "command": "python bench/cost_model.py --data DIR",
        }
        write_text(options.results, json.dumps(told | summary, indent=1) + "\n")


if __name__ == "__main__":
    main()
