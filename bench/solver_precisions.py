"""Time the solver where every shape may be in three types: 80 layers, 400 pairs of variants each.

    python bench/solver_precisions.py [--instances 20] [--seconds 20]

Llama-3.1-70B on a B200, bf16 with fp8 and nvfp4, limits on throughput and memory, all batch sizes
and TP degrees, random damage. Prints a table and one JSON line; `solver.py` times all else.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence

import numpy as np
from solver import SCENARIO, Timing, random_scores

from puzzle_search.arch import ParentConfig, SearchSpace
from puzzle_search.solve import Limits, ScoreRow, ScoreTable, Workload, formulate, solve
from puzzle_search.solve.question.device import find_target
from puzzle_search.solve.question.inputs import SearchInputs
from puzzle_search.solve.question.targets import cost_table

# What a type adds to the damage of a shape, as a share of the layer's level.
ADDED = {"fp8": 0.01, "nvfp4": 0.1}
LIMITS = Limits(tokens_per_second_per_gpu=6000.0, memory_bytes=60e9)


def in_types(names: Sequence[str]) -> tuple[str, ...]:
    """Shapes, then those with weights in each type."""
    typed = (f"{name}@{weights}" for weights in ADDED for name in names)
    return (*names, *(name for name in typed if not name.startswith("no_op")))


def typed_scores(
    config: ParentConfig, shapes: SearchSpace, typed: SearchSpace, seed: int
) -> ScoreTable:
    """Random damage of shapes, and on top of it that of a type."""
    rng = np.random.default_rng(seed)
    rows = random_scores(config, shapes, seed, sums=True).rows
    of_shape = {(row.first_layer, row.attention, row.ffn): row.value for row in rows}
    level = rng.lognormal(0.0, 1.0, (config.num_layers, 2))
    for layer, _, attention, ffn in typed.replacements(config, composed=False):
        shape, at, weights = (attention or ffn).partition("@")
        if not at:
            continue
        own = "" if shape in (config.attention, config.ffn) else shape
        key = (layer, own, "") if attention else (layer, "", own)
        added = ADDED[weights] * level[layer, int(not attention)] * float(rng.uniform(0.5, 1.5))
        rows.append(
            ScoreRow(
                first_layer=layer, last_layer=layer, attention=attention, ffn=ffn, metric="kl",
                value=of_shape.get(key, 0.0) + added, stderr=0.0, tokens=0,
            )
        )  # fmt: skip
    return ScoreTable(rows, {"evidence": "random"})


def main() -> None:
    """Print the table and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--instances", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=20.0)
    args = parser.parse_args()
    inputs = SearchInputs.find("llama-3.1-70b")
    config, shapes = inputs.config, inputs.space
    typed = SearchSpace(
        attention=tuple(map(in_types, shapes.attention)), ffn=tuple(map(in_types, shapes.ffn))
    )
    target = find_target("b200", config, engine="trtllm", dtype="bf16")
    table = cost_table(config, typed, target, SCENARIO, (1, 2, 4, 8))
    workload = Workload.on_device(table, LIMITS)
    print(f"{'work':52} {'runs':>4} {'optimal':>8} {'median':>8} {'worst':>8}  seconds")
    pairs = len(typed.attention[0]) * len(typed.ffn[0])
    solutions = [
        solve(
            formulate(config, typed, typed_scores(config, shapes, typed, seed), [workload]),
            max_seconds=args.seconds,
        )
        for seed in range(args.instances)
    ]
    timing = Timing.of(f"80 x {pairs} in three types, {len(table.points)} points", solutions)
    timing.show()
    print(
        json.dumps({"bench": "solver precisions", "points": len(table.points)} | timing.as_dict())
    )


if __name__ == "__main__":
    main()
