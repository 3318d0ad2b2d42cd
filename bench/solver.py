"""Time the solver: the shipped example by back end, and random instances of the same size.

    python bench/solver.py [--instances 50] [--seconds 20]

Prints a table and one JSON line. Times are of `solve` in process, tables already built.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
from typing import get_args

import numpy as np

from puzzle_search.cost import Scenario
from puzzle_search.solve import Limits, Problem, ScoreRow, ScoreTable, solve
from puzzle_search.solve.ask import SearchInputs, cost_table, find_target
from puzzle_search.solve.exact import Backend

TARGETS = (6000.0, 6472.0, 9568.0)


def random_scores(inputs: SearchInputs, seed: int) -> ScoreTable:
    """Log-normal importance by layer, damage rising along each list of variants."""
    rng = np.random.default_rng(seed)
    rows = []
    for layer in range(inputs.config.num_layers):
        for subblock in ("attention", "ffn"):
            variants = inputs.space.variants(subblock)[layer][1:]
            level = rng.lognormal(0.0, 1.0)
            for variant, share in zip(variants, np.sort(rng.random(len(variants))), strict=True):
                names = {"attention": "", "ffn": ""} | {subblock: variant}
                rows.append(
                    ScoreRow(
                        first_layer=layer, last_layer=layer, metric="kl",
                        value=float(level * share), stderr=0.0, tokens=0, **names,
                    )
                )  # fmt: skip
    return ScoreTable(rows, {"evidence": "random"})


def main() -> None:
    """Print the table and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--instances", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=20.0)
    args = parser.parse_args()
    inputs = SearchInputs.find("llama-3.1-70b")
    target = find_target("h100", inputs.config, engine="trtllm", dtype="fp8")
    scenario = Scenario(input_len=128, output_len=1024)
    result: dict[str, object] = {"bench": "solver", "processor": platform.processor()}

    one_tp = cost_table(inputs.config, inputs.space, target, scenario)
    print(f"llama-3.1-70b on h100, 80 x 54, {len(one_tp.points)} batch sizes, TP 1")
    print(f"{'tok/s/GPU':>10} {'back end':>9} {'status':>9} {'gap':>9} {'seconds':>8}")
    example = []
    for asked in TARGETS:
        limits = Limits(tokens_per_second_per_gpu=asked)
        problem = Problem.build(inputs.config, inputs.space, inputs.scores, one_tp, limits)
        for backend in get_args(Backend):
            found = solve(problem, backend=backend, max_seconds=args.seconds)
            print(
                f"{asked:>10.0f} {backend:>9} {found.status:>9} {found.gap:>9.1e} "
                f"{found.seconds:>8.2f}"
            )
            example.append([asked, backend, found.status, found.gap, found.seconds])
    result["example"] = example

    all_tp = cost_table(inputs.config, inputs.space, target, scenario, (1, 2, 4, 8))
    seconds, statuses = [], []
    for seed in range(args.instances):
        problem = Problem.build(
            inputs.config,
            inputs.space,
            random_scores(inputs, seed),
            all_tp,
            Limits(tokens_per_second_per_gpu=6000.0),
        )
        found = solve(problem, max_seconds=args.seconds)
        seconds.append(found.seconds)
        statuses.append(found.status)
    optimal = statuses.count("optimal")
    print(
        f"{args.instances} random instances, {len(all_tp.points)} points (TP 1/2/4/8): "
        f"{optimal} optimal, median {statistics.median(seconds):.2f} s, worst {max(seconds):.2f} s"
    )
    result["random"] = {
        "instances": args.instances,
        "points": len(all_tp.points),
        "optimal": optimal,
        "median_seconds": statistics.median(seconds),
        "worst_seconds": max(seconds),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
