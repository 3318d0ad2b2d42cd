"""Reconstruct a score table for Llama-3.1-70B from published children, by inverse optimisation.

    python examples/llama-3.1-70b/make_scores.py --data FOLDER

NVIDIA published the layers of Nemotron-51B (from Llama-3.1-70B) and Nemotron-Super-49B (from
Llama-3.3-70B), not the scores behind them. An architecture chosen by Puzzle minimises, in every
layer apart, damage + price x cost, so each published choice bounds the importance of its layer.
This script assumes one damage curve for all attention and one for all FFN subblocks (below),
prices cost by the multipliers of the solver's own relaxation, and takes per layer an importance
at which the published choices are least regretted, as near to its neighbours' as that allows.
The scale is set so that Nemotron-51B's damage is the KL that the paper reports for it before
global distillation (0.19, arXiv 2411.19146, ablation of GKD losses).

The result has the evidence `reconstructed`. It orders layers as the published children do; it is
no measurement of Llama-3.1-70B.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from puzzle_search import __version__
from puzzle_search.arch import ArchitectureSpec, ParentConfig, SearchSpace
from puzzle_search.cost import CostTable, OperatingPoint, Scenario, build_cost_table
from puzzle_search.solve import Limits, Problem, ScoreRow, ScoreTable
from puzzle_search.solve.ask import find_target
from puzzle_search.solve.relaxation import relax
from puzzle_search.solve.score_table import FORMAT

HERE = Path(__file__).parent
KL_OF_51B = 0.19

# Damage relative to leaving the subblock out, shaped so that every variant that the published
# children use can be the best one, and those that they avoid hardly ever: few layers share KV
# heads, so sharing saves little more than in proportion; none is between 100% and 50% of the FFN.
CURVES = {
    "attention": {
        "gqa_8": 0.0, "gqa_4": 0.26, "gqa_2": 0.39, "gqa_1": 0.46, "linear": 0.6, "no_op": 1.0,
    },
    "ffn": {
        "mlp_28672": 0.0, "mlp_24832": 0.07, "mlp_21504": 0.13, "mlp_17920": 0.19,
        "mlp_14336": 0.25, "mlp_7168": 0.45, "mlp_5632": 0.52, "mlp_2816": 0.68,
        "linear": 0.72, "no_op": 1.0,
    },
}  # fmt: skip
CHILDREN = {
    "Llama-3_1-Nemotron-51B-Instruct.json": 1.0,
    "Llama-3_3-Nemotron-Super-49B-v1.json": 0.3,  # another parent: counts for less
}
# A choice that is kept at any importance above a bound says nothing of how far above.
LARGEST_STEP = 3.0
TOLERANCE = 1e-4
SMOOTHING_ROUNDS = 10
ROUNDS = 6


@dataclass(frozen=True)
class Child:
    """A published child and how much its choices count."""

    spec: ArchitectureSpec
    weight: float


def read_children(folder: Path) -> list[Child]:
    """Per-layer choices as published."""
    children = []
    for name, weight in CHILDREN.items():
        layers = json.loads((folder / name).read_text())["layers"]
        pairs = [
            (
                f"gqa_{layer['num_kv_heads']}" if layer["attn"] == "gqa" else layer["attn"],
                f"mlp_{layer['intermediate_size']}" if layer["ffn"] == "ffn" else layer["ffn"],
            )
            for layer in layers
        ]
        children.append(Child(ArchitectureSpec.of(name, pairs), weight))
    return children


def importance(
    curve: dict[str, float], cost: dict[str, float], chosen: list[tuple[list[str], float]]
) -> np.ndarray:
    """Importance of each layer at which the chosen variants are least regretted, smoothed."""
    names = list(curve)
    damage, price = (np.array([table[name] for name in names]) for table in (curve, cost))
    grid = np.geomspace(0.02, 50, 800)
    value = grid[:, None] * damage + price
    regret = value - value.min(axis=1, keepdims=True)
    loss = sum(
        weight * np.stack([regret[:, names.index(variant)] for variant in variants])
        for variants, weight in chosen
    )
    least = loss <= loss.min(axis=1, keepdims=True) + TOLERANCE
    low = np.log(grid[least.argmax(axis=1)])
    high = np.log(grid[len(grid) - 1 - least[:, ::-1].argmax(axis=1)])
    high = np.minimum(high, low + np.log(LARGEST_STEP))
    level = (low + high) / 2
    for _ in range(SMOOTHING_ROUNDS):
        padded = np.pad(level, 1, mode="edge")
        level = np.clip((padded[:-2] + padded[2:]) / 2, low, high)
    return np.exp(level)


def rows_of(levels: dict[str, np.ndarray], space: SearchSpace, scale: float) -> list[ScoreRow]:
    """Single-subblock rows of every replacement."""
    rows = []
    for layer in range(space.num_layers):
        for subblock, variants in (("attention", space.attention[0]), ("ffn", space.ffn[0])):
            for variant in variants[1:]:
                value = scale * levels[subblock][layer] * CURVES[subblock][variant]
                names = {"attention": "", "ffn": ""} | {subblock: variant}
                rows.append(
                    ScoreRow(
                        first_layer=layer,
                        last_layer=layer,
                        metric="kl",
                        value=float(f"{value:.4e}"),
                        stderr=0.0,
                        tokens=0,
                        **names,
                    )
                )
    return rows


def prices(
    config: ParentConfig, space: SearchSpace, table: ScoreTable, cost: CostTable, target: float
) -> dict[str, dict[str, float]]:
    """What each variant costs at the multipliers of the relaxation, in units of damage."""
    limits = Limits(tokens_per_second_per_gpu=target)
    problem = Problem.build(config, space, table, cost, limits)
    found = [(relax(problem.at(i)), i) for i in range(len(cost.points))]
    relaxation, index = min(found, key=lambda entry: entry[0].bound)
    memory_price, time_price = relaxation.prices
    room = cost.target.memory_limit_bytes - cost.outside_memory_bytes[index]
    time = cost.time_limit_us(target)[index] - cost.outside_us[index]
    return {
        name: {
            variant: float(
                memory_price * part.memory_bytes[index, column] / room
                + time_price * part.total_us[index, column] / time
            )
            for column, variant in enumerate(part.variants)
        }
        for name, part in (("attention", cost.attention), ("ffn", cost.ffn))
    }


def main() -> None:
    """Write scores.csv and scores.yaml beside this script."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of published configs")
    args = parser.parse_args()
    config = ParentConfig.from_file(HERE / "config.json", name="llama-3.1-70b")
    space = SearchSpace.from_file(HERE / "space.yaml", config)
    children = read_children(args.data)
    target = find_target("h100", config, engine="trtllm", dtype="fp8")
    points = [OperatingPoint(batch=batch, tp=1) for batch in range(64, 513, 8)]
    cost = build_cost_table(
        config, target, Scenario(input_len=128, output_len=1024), points,
        attention=list(CURVES["attention"]), ffn=list(CURVES["ffn"]),
    )  # fmt: skip
    published = cost.best_cost(children[0].spec)
    assert published is not None
    sidecar = {
        "format": FORMAT,
        "package_version": __version__,
        "parent": config.name,
        "evidence": "reconstructed",
        "data": "published layers of Nemotron-51B and Nemotron-Super-49B; no text was scored",
        "made_by": "examples/llama-3.1-70b/make_scores.py",
        "notes": "inverse optimisation; scale: KL 0.19 of Nemotron-51B before distillation "
        "(arXiv 2411.19146)",
    }
    price = {
        name: {v: 1.0 - CURVES[name][v] for v in CURVES[name]} for name in ("attention", "ffn")
    }
    for _ in range(ROUNDS):
        levels = {}
        for name in ("attention", "ffn"):
            choices = [
                ([getattr(block, name) for block in child.spec.blocks], child.weight)
                for child in children
            ]
            levels[name] = importance(CURVES[name], price[name], choices)
        damage = sum(
            levels[name][layer] * CURVES[name][getattr(block, name)]
            for layer, block in enumerate(children[0].spec.blocks)
            for name in ("attention", "ffn")
        )
        scale = KL_OF_51B / damage
        table = ScoreTable(rows_of(levels, space, scale), sidecar)
        found = prices(config, space, table, cost, published.tokens_per_second_per_gpu)
        largest = max(max(costs.values()) for costs in found.values())
        price = {name: {v: c / largest for v, c in found[name].items()} for name in found}
    table.write(HERE / "scores.csv")
    print(f"{len(table.rows)} rows; Nemotron-51B: {published.tokens_per_second_per_gpu:.0f} tok/s")


if __name__ == "__main__":
    main()
