"""Reconstruct a score table for Llama-3.1-70B from published children, by inverse optimisation.

    python examples/llama-3.1-70b/make_scores.py --data FOLDER

NVIDIA published the layers of Nemotron-51B (from Llama-3.1-70B) and Nemotron-Super-49B (from
Llama-3.3-70B), not the scores behind them. This script assumes one damage curve for all attention
and one for all FFN subblocks (below), times an importance of each layer, and seeks importances at
which the solver's own answer to the published throughput is the published child:

1. An architecture chosen by Puzzle minimises, in every layer apart, damage + price x cost, so each
   published choice bounds the importance of its layer. Prices are the multipliers of the solver's
   relaxation; per layer an importance is taken at which both children's choices are least
   regretted, as near to its neighbours' as that allows.
2. A structured perceptron then solves at Nemotron-51B's throughput and raises or lowers the
   importance of layers where the answer keeps less or more than was published; the importances
   that agree best are kept.
3. What both children keep whole has an importance that is bounded from below only. For attention
   one factor above that bound is chosen for all such layers, so that the answer at the published
   throughput of Nemotron-40B has about its 40 billion parameters; its layers are not published.
4. The scale is set so that Nemotron-51B's damage is the KL that the paper reports for it before
   global distillation (0.19, arXiv 2411.19146, ablation of GKD losses).

The result has the evidence `reconstructed`. It orders layers as the published children do, and
agrees with them by construction; it is no measurement of Llama-3.1-70B.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from puzzle_search import __version__
from puzzle_search.arch import (
    ArchitectureSpec,
    ParentConfig,
    SearchSpace,
    architecture_parameters,
)
from puzzle_search.cost import CostTable, OperatingPoint, Scenario, build_cost_table
from puzzle_search.files import value_hash
from puzzle_search.solve import (
    Limits,
    ScoreRow,
    ScoreTable,
    Solution,
    Workload,
    formulate,
    solve,
)
from puzzle_search.solve.problem.problem import Region
from puzzle_search.solve.problem.score_table import FORMAT
from puzzle_search.solve.question.targets import find_target
from puzzle_search.solve.search.relaxation import relax

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
PRICE_ROUNDS = 6
PERCEPTRON_ROUNDS = 60
PERCEPTRON_STEP, PERCEPTRON_DECAY = 0.15, 0.97
# Published throughput of the children on one H100, 128/1024, FP8, tokens/s, and parameters.
TPS_OF_51B, PARAMETERS_OF_51B = 6472.0, 51.5e9
TPS_OF_40B, PARAMETERS_OF_40B = 9568.0, 40e9
KEPT_ATTENTION_FACTORS = (1.0, 1.2, 1.4, 1.5, 1.6, 1.7, 1.8, 2.0, 2.5)

Levels = dict[str, np.ndarray]
SUBBLOCKS = ("attention", "ffn")


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


def rows_of(levels: Levels, space: SearchSpace, scale: float) -> list[ScoreRow]:
    """Single-subblock rows of every replacement."""
    rows = []
    for layer in range(space.num_layers):
        for subblock, variants in (("attention", space.attention[0]), ("ffn", space.ffn[0])):
            for variant in variants[1:]:
                value = scale * levels[subblock][layer] * CURVES[subblock][variant]
                names = {"attention": "", "ffn": ""} | {subblock: variant}
                rows.append(
                    ScoreRow(
                        first_layer=layer, last_layer=layer, metric="kl",
                        value=float(f"{value:.4e}"), stderr=0.0, tokens=0, **names,
                    )
                )  # fmt: skip
    return rows


@dataclass(frozen=True)
class Reconstruction:
    """What importances are sought by."""

    config: ParentConfig
    space: SearchSpace
    cost: CostTable
    children: list[Child]

    @property
    def published(self) -> ArchitectureSpec:
        """Nemotron-51B."""
        return self.children[0].spec

    def answer(self, levels: Levels, tokens_per_second: float) -> Solution:
        """The solver's child at these importances."""
        table = ScoreTable(rows_of(levels, self.space, 1.0), {"evidence": "reconstructed"})
        workload = Workload.on_device(
            self.cost, Limits(tokens_per_second_per_gpu=tokens_per_second)
        )
        return solve(formulate(self.config, self.space, table, [workload]))

    def parameters(self, solution: Solution) -> int:
        """Of an answer."""
        return architecture_parameters(solution.spec, self.config)

    def agreement(self, spec: ArchitectureSpec, subblock: str) -> int:
        """Layers in which a child has the published variant."""
        pairs = zip(spec.blocks, self.published.blocks, strict=True)
        return sum(getattr(mine, subblock) == getattr(theirs, subblock) for mine, theirs in pairs)

    def prices(self, levels: Levels) -> dict[str, dict[str, float]]:
        """What each variant costs at the multipliers of the relaxation; 1 is the most."""
        found = self.answer(levels, TPS_OF_51B)
        region = Region(points=((found.points[0],),))
        point = found.problem.at(region)
        multipliers = relax(point).prices
        by_name = {
            "attention": dict(
                zip(found.problem.attention, multipliers @ point.attention_usage, strict=True)
            ),
            "ffn": dict(zip(found.problem.ffn, multipliers @ point.ffn_usage, strict=True)),
        }
        largest = max(max(costs.values()) for costs in by_name.values())
        return {
            name: {variant: by_name[name].get(variant, 0.0) / largest for variant in CURVES[name]}
            for name in SUBBLOCKS
        }

    def least_regretted(self, price: Mapping[str, dict[str, float]]) -> Levels:
        """Importances at which the published choices are least regretted."""
        levels = {}
        for name in SUBBLOCKS:
            choices = [
                ([getattr(block, name) for block in child.spec.blocks], child.weight)
                for child in self.children
            ]
            levels[name] = importance(CURVES[name], price[name], choices)
        return levels

    def by_perceptron(self, start: Levels) -> Levels:
        """The importances of best agreement on the way."""
        levels = {name: values.copy() for name, values in start.items()}
        best, best_levels, step = -np.inf, levels, PERCEPTRON_STEP
        for _ in range(PERCEPTRON_ROUNDS):
            found = self.answer(levels, TPS_OF_51B)
            agreements = [self.agreement(found.spec, name) for name in SUBBLOCKS]
            beyond = abs(self.parameters(found) / PARAMETERS_OF_51B - 1) - 0.02
            quality = min(agreements) + 0.1 * sum(agreements) - 1000 * max(0.0, beyond)
            if quality > best:
                best = quality
                best_levels = {name: values.copy() for name, values in levels.items()}
            for name in SUBBLOCKS:
                order = list(CURVES[name])
                blocks = zip(found.spec.blocks, self.published.blocks, strict=True)
                for layer, (mine, theirs) in enumerate(blocks):
                    lost = order.index(getattr(mine, name)) - order.index(getattr(theirs, name))
                    levels[name][layer] *= (1 + step) ** np.sign(lost)
            step *= PERCEPTRON_DECAY
        return best_levels

    def with_kept_attention(self, levels: Levels) -> Levels:
        """Attention that all children keep, made as important as 40 billion parameters tell."""
        own = self.config.attention
        kept = np.array(
            [
                all(child.spec.blocks[layer].attention == own for child in self.children)
                for layer in range(self.config.num_layers)
            ]
        )
        tried = [
            levels | {"attention": np.where(kept, factor, 1.0) * levels["attention"]}
            for factor in KEPT_ATTENTION_FACTORS
        ]
        return min(
            tried,
            key=lambda some: abs(
                self.parameters(self.answer(some, TPS_OF_40B)) - PARAMETERS_OF_40B
            ),
        )

    def damage_of_51b(self, levels: Levels) -> float:
        """Before scaling."""
        return sum(
            float(levels[name][layer]) * CURVES[name][getattr(block, name)]
            for layer, block in enumerate(self.published.blocks)
            for name in SUBBLOCKS
        )


def main() -> None:
    """Write scores.csv and scores.yaml beside this script."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of published configs")
    args = parser.parse_args()
    config = ParentConfig.from_file(HERE / "config.json", name="llama-3.1-70b")
    space = SearchSpace.from_file(HERE / "space.yaml", config)
    target = find_target("h100", config, engine="trtllm", dtype="fp8")
    cost = build_cost_table(
        config, target, Scenario(input_len=128, output_len=1024),
        [OperatingPoint(batch=batch, tp=1) for batch in target.batches],
        attention=space.all_variants("attention"), ffn=space.all_variants("ffn"),
    )  # fmt: skip
    work = Reconstruction(config, space, cost, read_children(args.data))
    levels = work.least_regretted(
        {name: {v: 1.0 - damage for v, damage in CURVES[name].items()} for name in SUBBLOCKS}
    )
    for _ in range(PRICE_ROUNDS):
        levels = work.least_regretted(work.prices(levels))
    levels = work.with_kept_attention(work.by_perceptron(levels))
    rows = rows_of(levels, space, KL_OF_51B / work.damage_of_51b(levels))
    sidecar = {
        "format": FORMAT,
        "package_version": __version__,
        "parent": config.name,
        "parent_config": value_hash(dict(config.raw)),
        "evidence": "reconstructed",
        "data": "published layers of Nemotron-51B and Nemotron-Super-49B, published throughput and "
        "size of Nemotron-40B; no text was scored",
        "made_by": "examples/llama-3.1-70b/make_scores.py",
        "notes": "inverse optimisation on the h100 cost model; scale: KL 0.19 of Nemotron-51B "
        "before distillation (arXiv 2411.19146)",
    }
    ScoreTable(rows, sidecar).write(HERE / "scores.csv")
    for asked in (TPS_OF_51B, TPS_OF_40B):
        found = work.answer(levels, asked)
        agree = [work.agreement(found.spec, name) for name in SUBBLOCKS]
        print(
            f"{asked:.0f} tok/s: {work.parameters(found) / 1e9:.2f}B parameters, attention as in "
            f"Nemotron-51B in {agree[0]} of 80 layers, FFN in {agree[1]}"
        )


if __name__ == "__main__":
    main()
