"""The H100's cost model derived from the H200's timings, against the H100's own timings.

Nothing of the H100 but its data sheet goes into the derivation. Two things are compared with the
H100's operator tables: every H200 timing times the ratio of the derived to the H200's own
prediction (``points``), and the derived constants alone (``model``). The other direction follows,
as a check that the rules were not made for one. Prints tables and one JSON line.

    python bench/derive.py [--results FILE]
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parent))

from cost_model import Tables, read_tables
from cost_model_throughput import parent_config
from cost_model_variants import MeasuredOperators, ModelOperators, agreement

from puzzle_search.arch import SearchSpace
from puzzle_search.cost.fitting.operator_tables import OperatorTables, compare
from puzzle_search.cost.modelled.derive import derive
from puzzle_search.cost.modelled.hardware import CostModel, find_cost_model
from puzzle_search.errors import InputError
from puzzle_search.files import write_text
from puzzle_search.resources import resource

ENGINES = ("trtllm", "vllm")
DIRECTIONS = (("h200", "h100"), ("h100", "h200"))
DEMANDS = {"GEMM": 0.05, "prefill attention": 0.07, "decode attention": 0.07}
TAU_DEMAND = 0.95

_ATTENTION = ["batch_size", "num_heads", "num_key_value_heads", "head_dim"]
_SHAPES = {
    "GEMM": ["m", "n", "k"],
    "prefill attention": [*_ATTENTION, "isl"],
    "decode attention": [*_ATTENTION, "kv_len"],
    "all-reduce": ["num_gpus", "message_size"],
}


def rows_of(tables: OperatorTables) -> list[pd.DataFrame]:
    """Timings of every operator and dtype, in the order of `compare`."""
    by_dtype = [
        rows
        for dtype in tables.dtypes
        for rows in (tables.gemm_rows(dtype), tables.prefill_rows(dtype), tables.decode_rows(dtype))
    ]
    assert tables.all_reduce is not None
    return [*by_dtype, tables.all_reduce]


def derive_tables(
    timed: OperatorTables, *, base: CostModel, derived: CostModel, engine: str
) -> OperatorTables:
    """Each timing of ``base`` times the ratio of the two models' predictions of its shape."""
    here, there = (compare(of.engine(engine), of.sheet, timed) for of in (base, derived))
    parts = [
        rows.assign(us=rows["us"] * other.predicted_us / own.predicted_us)
        for rows, own, other in zip(rows_of(timed), here, there, strict=True)
    ]
    gemm, prefill, decode = (pd.concat(parts[i:-1:3]) for i in range(3))
    return OperatorTables(
        version=timed.version,
        gemm=gemm,
        prefill_attention=prefill,
        decode_attention=decode,
        all_reduce=parts[-1],
        quantisation=timed.quantisation,
    )


def median_p90(relative: NDArray[np.float64]) -> list[float]:
    """Median and 90th percentile of absolute relative errors."""
    return [round(float(np.quantile(np.abs(relative), q)), 4) for q in (0.5, 0.9)]


def operator_errors(
    measured: OperatorTables,
    points: OperatorTables,
    derived: CostModel,
    own: CostModel,
    engine: str,
) -> list[dict[str, Any]]:
    """Median and p90 over all timings, of derived points, derived constants and fitted ones."""
    found = []
    for residuals, fitted, truth, rows in zip(
        compare(derived.engine(engine), derived.sheet, measured),
        compare(own.engine(engine), own.sheet, measured),
        rows_of(measured),
        rows_of(points),
        strict=True,
    ):
        shape = _SHAPES[residuals.operator]
        both = truth.merge(rows, on=shape, suffixes=("", "_derived"), validate="one_to_one")
        relative = both["us_derived"].to_numpy() / both["us"].to_numpy() - 1
        row: dict[str, Any] = {
            "engine": engine,
            "operator": residuals.operator,
            "dtype": residuals.dtype,
            "timings": len(both),
            "points": median_p90(relative),
            "model": median_p90(residuals.relative),
            "fitted": median_p90(fitted.relative),
        }
        if "attention" in residuals.operator:
            heads = both["num_key_value_heads"].to_numpy()
            row["by_kv_heads"] = {
                int(kv): {
                    "points": median_p90(relative[heads == kv]),
                    "model": median_p90(residuals.relative[residuals.kv_heads == kv]),
                }
                for kv in np.unique(heads)[::-1]
            }
        found.append(row)
    return found


def variant_order(
    measured: OperatorTables,
    points: OperatorTables,
    derived: CostModel,
    own: CostModel,
    engine: str,
) -> list[dict[str, Any]]:
    """Least Kendall tau of the 54 variants over five scenarios and TP 1, 2 and 4, by dtype."""
    config = parent_config()
    space = SearchSpace.from_file(resource("examples", "llama-3.1-70b", "space.yaml"), config)
    names = (space.all_variants("attention"), space.all_variants("ffn"))
    found = []
    for dtype in measured.gemm:
        timed, carried = (
            MeasuredOperators(of, dtype, config.hidden_size) for of in (measured, points)
        )
        fitted, model = (
            ModelOperators(of.engine(engine), of.sheet, dtype) for of in (own, derived)
        )
        pairs = {
            "points_to_measured": (timed, carried),
            "model_to_measured": (timed, model),
            "model_to_fitted": (fitted, model),
        }
        row: dict[str, Any] = {"engine": engine, "dtype": dtype}
        for name, (truth, said) in pairs.items():
            agreed = agreement(truth, said, config, *names)
            row[name] = {
                "tau_least": round(agreed.tau_least, 4),
                "points_p90": round(agreed.points_p90, 4),
            }
        found.append(row)
    return found


def direction(tables: Tables, base: CostModel, own: CostModel) -> dict[str, Any]:
    """Derive one GPU from another and compare with its own timings; prints what it returns."""
    derived = derive(base, gpu=own.gpu, sheet=own.sheet)
    operators, order = [], []
    for engine in ENGINES:
        points = derive_tables(tables[base.gpu][engine], base=base, derived=derived, engine=engine)
        timed = tables[own.gpu][engine]
        operators += operator_errors(timed, points, derived=derived, own=own, engine=engine)
        order += variant_order(timed, points, derived=derived, own=own, engine=engine)
    print(f"{own.gpu} derived from {base.gpu}; median / p90 over all timings of the {own.gpu}")
    print(f"{'':34}{'points':>16}{'model':>16}{'own fit':>16}   points by KV heads, median")
    for row in operators:
        name = f"{row['engine']} {row['operator']} {row['dtype']}"
        errors = [row[by] for by in ("points", "model", "fitted")]
        shown = "".join(f"{median:9.1%} /{p90:5.1%}" for median, p90 in errors)
        heads = row.get("by_kv_heads", {})
        by_heads = "  ".join(f"{kv}: {of['points'][0]:.1%}" for kv, of in heads.items())
        print(f"{name:34}{shown}   {by_heads}")
    print(f"{'least tau of 54 variants':34}{'points':>16}{'model':>16}{'model to own fit':>20}")
    for row in order:
        taus = [row[of]["tau_least"] for of in ("points_to_measured", "model_to_measured")]
        name, against = f"{row['engine']} {row['dtype']}", row["model_to_fitted"]["tau_least"]
        print(f"{name:34}{taus[0]:16.3f}{taus[1]:16.3f}{against:20.3f}")
    return {
        "from": base.gpu,
        "to": own.gpu,
        "operators": operators,
        "variants": order,
        "demands": demands(operators, order),
    }


def demands(operators: list[dict[str, Any]], order: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Worst engine and dtype of each demand, for derived points and for derived constants."""
    found: list[dict[str, Any]] = []
    for by in ("points", "model"):
        for operator, limit in DEMANDS.items():
            worst = max(row[by][0] for row in operators if row["operator"] == operator)
            found.append(
                {"what": f"{operator} median, {by}", "demand": limit, "worst": worst}
                | {"reached": worst <= limit}
            )
    for against in ("points_to_measured", "model_to_measured", "model_to_fitted"):
        worst = min(row[against]["tau_least"] for row in order)
        found.append(
            {"what": f"least tau, {against}", "demand": TAU_DEMAND, "worst": worst}
            | {"reached": worst >= TAU_DEMAND}
        )
    for row in found:
        told = "reached" if row["reached"] else "missed"
        print(f"{row['what']:34} worst {row['worst']:.3f}, demand {row['demand']}: {told}")
    print()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, help="write the summary here, too")
    options = parser.parse_args()
    try:
        tables = read_tables(("h100", "h200"))
    except InputError as error:
        print(f"skipped: {error} ({error.remedy})")
        return
    models = {gpu: CostModel.from_file(find_cost_model(gpu)) for gpu in ("h100", "h200")}
    summary = {
        "benchmark": "derive",
        "directions": [direction(tables, models[of], models[to]) for of, to in DIRECTIONS],
    }
    print(json.dumps(summary))
    if options.results:
        told = {
            "date": datetime.date.today().isoformat(),
            "evidence": "derived constants and points against published timings of the same device",
            "command": "python bench/derive.py",
        }
        write_text(options.results, json.dumps(told | summary, indent=1) + "\n")


if __name__ == "__main__":
    main()
