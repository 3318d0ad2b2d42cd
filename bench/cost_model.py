"""How far the cost models of the GPUs are from measurements and from published throughput.

Prints, with the error of the data sheet alone beside each: held-out errors of every operator, the
order of the 54 block variants, and every published row of whole models with the error that users
get; then one JSON line. With ``--write`` it fits the constants of the H100 and the H200 anew.

    python bench/cost_model.py --data DIR [--write cost_models] [--results FILE]
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))

from cost_model_throughput import fit_steps, parent_config, throughput
from cost_model_variants import MeasuredOperators, ModelOperators, agreement

from puzzle_search.arch import SearchSpace
from puzzle_search.cost.fitting.calibrate import calibrate_tables, step_for
from puzzle_search.cost.fitting.calibrate_engine import with_step
from puzzle_search.cost.fitting.calibration import table_errors
from puzzle_search.cost.fitting.operator_tables import OperatorTables, compare
from puzzle_search.cost.modelled.hardware import CostModel, find_cost_model
from puzzle_search.cost.modelled.roofline import roofline_engine
from puzzle_search.cost.modelled.transfer import transfer
from puzzle_search.files import write_text
from puzzle_search.resources import resource

REPOSITORY = Path(__file__).resolve().parent.parent
OPERATORS = "ai-dynamo/aiconfigurator @095f58a (Apache-2.0)"
GPUS, ENGINES = ("h100", "h200"), ("trtllm", "vllm")

Tables = dict[str, dict[str, OperatorTables]]


def read_tables(data: Path) -> Tables:
    """Operator timings by GPU and engine."""
    return {
        gpu: {
            engine: OperatorTables.from_folder(
                data / "operators", gpu=f"{gpu}_sxm", framework=engine
            )
            for engine in ENGINES
        }
        for gpu in GPUS
    }


def fit(data: Path, tables: Tables) -> dict[str, CostModel]:
    """Fit both GPUs anew: operators to timings, the step of TensorRT-LLM to published rows."""
    fitted = {}
    for gpu in GPUS:
        bare = replace(CostModel.from_file(find_cost_model(gpu)), based_on=None)
        source = f"{OPERATORS}, {gpu}_sxm"
        fitted[gpu] = calibrate_tables(tables[gpu], bare, source=source)
    steps = fit_steps(data, fitted)
    for gpu, model in fitted.items():
        model = with_step(model, "trtllm", steps[gpu])
        only = replace(model, engines={"trtllm": model.engine("trtllm")})
        limits = {"max_batch": model.engine("vllm").step.max_batch}
        stand_in = replace(step_for(only, "vllm"), **limits)
        fitted[gpu] = with_step(model, "vllm", stand_in)
    return fitted


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
                for heads in np.unique(residuals.kv_heads)[::-1]
                if heads
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
    """How far H100 constants carried over by the data sheets are from H200 timings."""
    base, sheet = models["h100"], models["h200"].sheet
    print(f"\n{'H100 constants on the H200s data sheet':46}{'median':>8}{'p90':>8}")
    found = []
    for engine in ENGINES:
        carried = transfer(base.engine(engine), name="h100", base=base.sheet, sheet=sheet)
        for residuals in compare(carried, sheet, tables["h200"][engine]):
            median, p90 = residuals.median_p90(np.ones_like(residuals.held_out))
            print(f"{f'{engine} {residuals.operator} {residuals.dtype}':46}{median:8.1%}{p90:8.1%}")
            found.append(
                {
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
    print("  points of the parent   datasheet alone: tau, p90")
    found = []
    for gpu, model in models.items():
        for engine, timed in tables[gpu].items():
            for dtype in timed.dtypes:
                truth = MeasuredOperators(timed, dtype, config.hidden_size)
                said, ideal = (
                    agreement(truth, ModelOperators(of, model.sheet, dtype), config, *names)
                    for of in (model.engine(engine), roofline_engine(model.sheet))
                )
                print(
                    f"{f'{gpu} {engine} {dtype}':34}{said.tau_least:10.3f}{said.points_p90:8.2f}"
                    f"{'':23}{ideal.tau_least:10.3f}{ideal.points_p90:8.2f}"
                )
                found.append(
                    {"gpu": gpu, "engine": engine, "dtype": dtype}
                    | said.as_dict()
                    | {f"datasheet_{name}": value for name, value in ideal.as_dict().items()}
                )
    return found


def faster_than_hardware(models: dict[str, CostModel], tables: Tables) -> int:
    """How many timed points are predicted below the time of the data sheet's roofline."""
    return sum(
        int(np.sum(error.calibrated.predicted_us < error.datasheet.predicted_us * (1 - 1e-9)))
        for gpu, model in models.items()
        for error in table_errors(model, tables[gpu])
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=REPOSITORY.parent / "shared" / "data")
    parser.add_argument("--write", type=Path, help="fit anew and write into this folder")
    parser.add_argument("--results", type=Path, help="write the summary here, too")
    options = parser.parse_args()
    if not (options.data / "operators").is_dir():
        print(f"skipped: {options.data} has no operator tables (name their folder with --data)")
        return
    tables = read_tables(options.data)
    if options.write:
        for gpu, model in fit(options.data, tables).items():
            write_text(options.write / f"{gpu}.yaml", model.to_yaml())
    folder = options.write or resource("cost_models")
    models = {gpu: CostModel.from_file(folder / f"{gpu}.yaml") for gpu in GPUS}

    summary: dict[str, Any] = {"benchmark": "cost_model"}
    summary["operators"] = operator_table(models, tables)
    summary["faster_than_hardware"] = faster_than_hardware(models, tables)
    summary["transfer_h100_to_h200"] = transfer_table(models, tables)
    summary["variants"] = variants_table(models, tables)
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
