"""Reconstruct a score table for Llama-3.1-70B from the layers of published children.

    python examples/llama-3.1-70b/make_scores.py

NVIDIA published what three children kept of each layer (`children/`), not the scores behind them.

1. The order of the layers is a curve in depth that all three children tell together
   (`layer_curve.py`); `held_out.py` leaves each of them out in turn.
2. Layers one standard deviation apart on that curve differ in damage by a factor e (`SPREAD`), and
   within a layer damage goes with what is left by one curve for attention and one for FFN
   (`SHAPES`).
3. How attention weighs against FFN is one factor, at which the answers to the published throughputs
   of Nemotron-51B and 40B come nearest to their published sizes.
4. The scale is set so that Nemotron-51B's damage is the KL that the paper reports for it before
   global distillation (0.19, arXiv 2411.19146, ablation of GKD losses).

A row's value is the mean, its standard error the standard deviation of a log-normal damage, whose
logarithm is as uncertain as the curve's prediction of a child that it has not seen: own departures
and noise of choices count in full, since nothing tells them from the curve's error.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from held_out import table
from layer_curve import NOISE, OWN, SUBBLOCKS, Child, Curve, best_length, posterior

from puzzle_search import __version__
from puzzle_search.arch import (
    ArchitectureSpec,
    ParentConfig,
    SearchSpace,
    Subblock,
    architecture_parameters,
)
from puzzle_search.cost import CostTable, Scenario
from puzzle_search.files import value_hash
from puzzle_search.solve import Limits, ScoreRow, ScoreTable, Solution, Workload, formulate, solve
from puzzle_search.solve.problem.score_table import FORMAT
from puzzle_search.solve.question.device import find_target
from puzzle_search.solve.question.targets import cost_table

HERE = Path(__file__).parent
# Parents of one family were post-trained from the same weights.
CHILDREN = {"nemotron-51b": "70B", "nemotron-49b": "70B", "nemotron-253b": "405B"}
# From the first FFN that Nemotron-49B narrows to its narrowest are 1.15 standard deviations of the
# layers, and by the shapes below damages 3.3 times apart; 51B's 50% and 25% say much the same.
SPREAD = 1.0
# Damage relative to leaving the subblock out, shaped so that every variant that the published
# children use can be the best one, and those that they avoid hardly ever: few layers share KV
# heads, so sharing saves little more than in proportion; none is between 100% and 50% of the FFN.
SHAPES: dict[Subblock, dict[str, float]] = {
    "attention": {"gqa_4": 0.26, "gqa_2": 0.39, "gqa_1": 0.46, "linear": 0.6, "no_op": 1.0},
    "ffn": {
        "mlp_24832": 0.07, "mlp_21504": 0.13, "mlp_14336": 0.25, "mlp_7168": 0.45,
        "mlp_5632": 0.52, "mlp_2816": 0.68, "linear": 0.72, "no_op": 1.0,
    },
}  # fmt: skip
# Published throughput on one H100, 128/1024, FP8, tokens/s, and parameters (NVIDIA, 2024-09).
ASKED = {6472.0: 51.5e9, 9568.0: 40e9}
ATTENTION_FACTORS = np.geomspace(0.25, 4.0, 33)
KL_OF_51B = 0.19


def read_children() -> list[Child]:
    """The published children as evidence."""
    return [
        Child.of(name, family, ArchitectureSpec.from_file(HERE / "children" / f"{name}.yaml"))
        for name, family in CHILDREN.items()
    ]


def damage_of(curve: Curve) -> tuple[np.ndarray, np.ndarray]:
    """Mean of each layer's damage before scaling, and its standard deviation as a share of that."""
    variance = SPREAD**2 * (curve.variance + OWN**2 + NOISE**2)
    return np.exp(SPREAD * curve.mean + variance / 2), np.sqrt(np.expm1(variance))


def rows_of(curves: dict[Subblock, Curve], factor: dict[Subblock, float]) -> Iterator[ScoreRow]:
    """Single-subblock rows of every replacement, by layer."""
    damages = {subblock: damage_of(curve) for subblock, curve in curves.items()}
    for layer in range(len(curves["ffn"].mean)):
        for subblock in SUBBLOCKS:
            mean, share = (values[layer] for values in damages[subblock])
            for variant, shape in SHAPES[subblock].items():
                value = float(f"{factor[subblock] * mean * shape:.4e}")
                names = {"attention": "", "ffn": ""} | {subblock: variant}
                yield ScoreRow(
                    first_layer=layer, last_layer=layer, metric="kl", value=value,
                    stderr=float(f"{value * share:.3e}"), tokens=0, **names,
                )  # fmt: skip


class Asker:
    """The solver's answers on one H100."""

    def __init__(self) -> None:
        self.config = ParentConfig.from_file(HERE / "config.json", name="llama-3.1-70b")
        self.space = SearchSpace.from_file(HERE / "space.yaml", self.config)
        target = find_target("h100", self.config, engine="trtllm", dtype="fp8")
        scenario = Scenario(input_len=128, output_len=1024)
        self.cost: CostTable = cost_table(self.config, self.space, target, scenario)

    def answer(self, rows: list[ScoreRow], tokens_per_second: float) -> Solution:
        """The child of least damage."""
        limits = Limits(tokens_per_second_per_gpu=tokens_per_second)
        scores = ScoreTable(rows, {"evidence": "reconstructed"})
        workload = Workload.on_device(self.cost, limits)
        return solve(formulate(self.config, self.space, scores, [workload]))

    def parameters(self, solution: Solution) -> int:
        """Of an answer."""
        return architecture_parameters(solution.spec, self.config)

    def error(self, rows: list[ScoreRow]) -> float:
        """The largest error of the sizes that are known, as a part of them."""
        return max(
            abs(self.parameters(self.answer(rows, asked)) / size - 1)
            for asked, size in ASKED.items()
        )


def total(spec: ArchitectureSpec, rows: list[ScoreRow]) -> float:
    """Damage of a child."""
    values = {(row.first_layer, row.attention, row.ffn): row.value for row in rows}
    return sum(
        values.get((layer, block.attention, ""), 0.0) + values.get((layer, "", block.ffn), 0.0)
        for layer, block in enumerate(spec.blocks)
    )


def main() -> None:
    """Write scores.csv and scores.yaml beside this script, and print what was left out."""
    children, asker = read_children(), Asker()
    length = best_length(children)
    print(f"depth over which curves change: {length:g}\n\n{table(children)}\n")
    curves = {s: posterior(children, s, children[0], length) for s in SUBBLOCKS}
    by_factor = {
        factor: list(rows_of(curves, {"attention": factor, "ffn": 1.0}))
        for factor in ATTENTION_FACTORS
    }
    attention = min(by_factor, key=lambda factor: asker.error(by_factor[factor]))
    of_51b = ArchitectureSpec.from_file(HERE / "children" / "nemotron-51b.yaml")
    scale = KL_OF_51B / total(of_51b, by_factor[attention])
    rows = list(rows_of(curves, {"attention": attention * scale, "ffn": scale}))
    sidecar = {
        "format": FORMAT,
        "package_version": __version__,
        "parent": asker.config.name,
        "parent_config": value_hash(dict(asker.config.raw)),
        "evidence": "reconstructed",
        "data": "published layers of Nemotron-51B, Nemotron-Super-49B and Nemotron-Ultra-253B, "
        "published throughput and size of Nemotron-51B and 40B; no text was scored",
        "made_by": "examples/llama-3.1-70b/make_scores.py",
        "notes": f"curve in depth of length {length:g}, attention {attention:.3g} x FFN; scale: KL "
        f"{KL_OF_51B} of Nemotron-51B before distillation (arXiv 2411.19146)",
    }
    ScoreTable(rows, sidecar).write(HERE / "scores.csv")
    for asked in ASKED:
        size = asker.parameters(asker.answer(rows, asked)) / 1e9
        print(f"{asked:.0f} tok/s: {size:.2f}B parameters")


if __name__ == "__main__":
    main()
