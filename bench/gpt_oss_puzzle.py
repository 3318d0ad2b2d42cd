"""gpt-oss-puzzle-88B against its parent on H100s: predicted ratios of throughput, and the paper's.

Nothing was calibrated on these ratios: the costs are those of `cost_models/h100.yaml` for vLLM,
the engine that the paper used, each model at its best batch size. What the paper's parent kept in
its KV cache (bf16, or fp8 as the child), and the lengths of "one H100", are not known here: all of
them are shown.
"""

from __future__ import annotations

import argparse
import datetime
import json
from pathlib import Path
from typing import Any

from puzzle_search.arch import ArchitectureSpec, ParentConfig
from puzzle_search.cost import Scenario, ScenarioCost
from puzzle_search.cost.pricing import build_cost_table
from puzzle_search.cost.table import OperatingPoint
from puzzle_search.files import write_text
from puzzle_search.resources import resource
from puzzle_search.solve.question.device import find_target

PAPER = (
    ("64k/64k", 8, 1.63), ("4k/4k", 8, 1.22), ("64k/64k", 1, 2.82), ("4k/4k", 1, 2.82),
)  # fmt: skip
BF16_KV, FP8_KV = "mxfp4", "mxfp4_kv_fp8"
PAIRS = {"bf16": (BF16_KV, BF16_KV), "fp8": (FP8_KV, FP8_KV), "bf16, child fp8": (BF16_KV, FP8_KV)}


def cost(spec: ArchitectureSpec, scenario: str, tp: int, dtype: str) -> ScenarioCost:
    """At the batch size of highest throughput."""
    config = ParentConfig.find("gpt-oss-120b")
    target = find_target("h100", config, engine="vllm", dtype=dtype, tp=(tp,))
    table = build_cost_table(
        config,
        target,
        Scenario.parse(scenario),
        [OperatingPoint(batch=batch, tp=tp) for batch in target.batches],
        attention=list(dict.fromkeys(block.attention for block in spec.blocks)),
        ffn=list(dict.fromkeys(block.ffn for block in spec.blocks)),
    )
    found = table.best_cost(spec)
    assert found is not None
    return found


def compare(scenario: str, tp: int, paper: float) -> list[dict[str, Any]]:
    """One row for each precision of the two KV caches."""
    parent = ArchitectureSpec.identity(ParentConfig.find("gpt-oss-120b"))
    folder = resource("examples", "gpt-oss-120b", "children")
    child = ArchitectureSpec.from_file(folder / "gpt-oss-puzzle-88b.yaml")
    rows = []
    for name, dtypes in PAIRS.items():
        before, after = (
            cost(spec, scenario, tp, dtype)
            for spec, dtype in zip((parent, child), dtypes, strict=True)
        )
        ratio = after.tokens_per_second_per_gpu / before.tokens_per_second_per_gpu
        rows.append(
            {
                "scenario": scenario, "h100": tp, "kv": name,
                "parent_batch": before.point.batch, "child_batch": after.point.batch,
                "predicted": round(ratio, 3), "paper": paper, "error": round(ratio / paper - 1, 4),
            }
        )  # fmt: skip
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, help="write the summary here, too")
    options = parser.parse_args()
    table = [row for case in PAPER for row in compare(*case)]
    print("in/out    H100  KV cache          batches     predicted  paper  error")
    for row in table:
        batches = f"{row['parent_batch']}, {row['child_batch']}"
        print(
            f"{row['scenario']:8}  {row['h100']:4}  {row['kv']:16}  {batches:10}  "
            f"{row['predicted']:9.2f}  {row['paper']:5.2f}  {row['error']:+6.1%}"
        )
    summary = {"benchmark": "gpt_oss_puzzle", "rows": table}
    print(json.dumps(summary))
    if options.results:
        told = {
            "date": datetime.date.today().isoformat(),
            "evidence": "predictions from published operator timings, against arXiv 2602.11937; "
            "not calibrated on it",
            "command": "python bench/gpt_oss_puzzle.py",
        }
        write_text(options.results, json.dumps(told | summary, indent=1) + "\n")


if __name__ == "__main__":
    main()
