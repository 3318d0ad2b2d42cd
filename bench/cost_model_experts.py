"""Mixtures of experts: the cost model's closed form against published timings that it never saw.

The form is `AnalyticLatency.experts_us`: grouped products by the constants of single ones, experts
read as a uniform router picks them. The timings are those of `aiconfigurator-core` (extra
``silicon``): of each engine the version with most of them, without expert parallelism, TP 1 to 8,
of several kernels the fastest.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from puzzle_search.arch import Experts, Moe, ParentConfig
from puzzle_search.cost.fitting.silicon import ENGINES, Silicon
from puzzle_search.cost.modelled.analytic import AnalyticLatency
from puzzle_search.cost.modelled.hardware import CostModel, load_cost_model
from puzzle_search.errors import InputError
from puzzle_search.files import write_text

GPUS = ("h100", "h200", "a100", "b200")
# By name in the tables: fp8 with one scale for a matrix, and with one for every 128 x 128 entries.
DTYPES = {"bfloat16": "bf16", "fp8_block": "fp8", "fp8": "fp8"}
_CASE = ["hidden_size", "inter_size", "topk", "num_experts", "moe_tp_size"]
_LARGEST_TP = 8
# The form asks a parent for its hidden size, width and experts alone, which the tables have.
_PARENT = ParentConfig.from_dict(
    {
        "model_type": "mixtral", "hidden_size": 4096, "num_hidden_layers": 1,
        "num_attention_heads": 32, "num_key_value_heads": 8, "intermediate_size": 14336,
        "vocab_size": 32000, "max_position_embeddings": 32768, "num_local_experts": 8,
        "num_experts_per_tok": 2,
    },
    name="any",
)  # fmt: skip


def timings(silicon: Silicon, engine: str) -> pd.DataFrame | None:
    """Rows of an engine, one for each shape, tokens, TP and spread; None where there are none."""
    files = (silicon.folder / "moe" / engine).glob("*/moe_perf.parquet")
    rows = pd.concat([pd.DataFrame(), *(pd.read_parquet(file) for file in files)])
    if rows.empty:
        return None
    # Some folders hold another engine's file, or copies of another version's.
    rows = rows[rows["framework"].str.lower() == engine]
    version = rows["version"].value_counts().index[0]
    rows = rows[
        (rows["version"] == version)
        & (rows["moe_ep_size"] == 1)
        & (rows["moe_tp_size"] <= _LARGEST_TP)
        & rows["moe_dtype"].isin(list(DTYPES))
    ]
    keys = [*_CASE, "moe_dtype", "distribution", "num_tokens"]
    return rows.sort_values("latency").drop_duplicates(keys).assign(us=rows["latency"] * 1e3)


def ratios(rows: pd.DataFrame, model: CostModel, engine: str, dtype: str) -> np.ndarray:
    """Predicted by timed microseconds of every row."""
    found: list[np.ndarray] = []
    for case, part in rows.groupby(_CASE):
        hidden, width, top_k, experts, tp = (int(size) for size in case)
        config = dataclasses.replace(
            _PARENT,
            hidden_size=hidden,
            intermediate_size=width,
            experts=Experts(count=experts, top_k=top_k, renormalised=True),
        )
        latency = AnalyticLatency(config, model, engine, dtype)
        tokens = part["num_tokens"].to_numpy(np.float64)
        found.append(latency.experts_us(tokens, Moe(experts), tp) / part["us"].to_numpy())
    return np.concatenate(found)


def compare(gpu: str) -> list[dict[str, Any]]:
    """One row for each engine, dtype and spread of tokens over experts."""
    silicon, model = Silicon.installed(f"{gpu}_sxm"), load_cost_model(gpu)
    table: list[dict[str, Any]] = []
    for engine in ENGINES:
        rows = timings(silicon, engine)
        if rows is None or engine not in model.engines:
            continue
        for (named, spread), part in rows.groupby(["moe_dtype", "distribution"]):
            dtype = DTYPES[str(named)]
            if dtype not in model.engine(engine).dtypes:
                continue
            found = ratios(part, model, engine, dtype)
            errors = np.abs(found - 1)
            table.append(
                {
                    "gpu": gpu, "engine": engine, "version": str(part["version"].iloc[0]),
                    "dtype": str(named), "tokens": str(spread), "timings": len(found),
                    "error_median": round(float(np.median(errors)), 4),
                    "error_p90": round(float(np.quantile(errors, 0.9)), 4),
                    "ratio_median": round(float(np.median(found)), 4),
                }
            )  # fmt: skip
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, help="write the summary here, too")
    options = parser.parse_args()
    try:
        table = [row for gpu in GPUS for row in compare(gpu)]
    except InputError as error:
        print(f"skipped: {error} ({error.remedy})")
        return
    print(f"{'GPU':5} {'engine':7} {'dtype':10} {'tokens':15} timings  median    p90  ratio")
    for row in table:
        print(
            f"{row['gpu']:5} {row['engine']:7} {row['dtype']:10} {row['tokens']:15} "
            f"{row['timings']:7} {row['error_median']:7.1%} {row['error_p90']:6.0%} "
            f"{row['ratio_median']:6.2f}"
        )
    summary = {"benchmark": "cost_model_experts", "rows": table}
    print(json.dumps(summary))
    if options.results:
        told = {
            "date": datetime.date.today().isoformat(),
            "evidence": "derived predictions against published timings",
            "command": "python bench/cost_model_experts.py",
        }
        write_text(options.results, json.dumps(told | summary, indent=1) + "\n")


if __name__ == "__main__":
    main()
