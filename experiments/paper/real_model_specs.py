"""Random architectures of SmolLM2-135M: what scores and profile foretell, and what is so.

    python experiments/paper/real_model_specs.py runs/smollm2 --profile PROFILE --library LIBRARY \
        --scores SCORES --out bench/results

Random specs at three speed-ups: the sum of replace-1-block scores against the KL of the child put
together, on the test split; and of a few, predicted against measured tokens per second in
llama.cpp. Results are kept in the folder; run again, it goes on.
"""

from __future__ import annotations

import json

import numpy as np
import torch
from baselines import random_specs
from real_model import BATCHES, SCENARIO, SPEEDUPS, TEST_TOKENS, RealModel, opened, today
from scipy.stats import spearmanr

from puzzle_search.arch import ArchitectureSpec
from puzzle_search.checkpoint import CheckpointReader
from puzzle_search.checkpoint.block_library import BlockLibrary
from puzzle_search.files import write_text
from puzzle_search.pipeline.rounds import ScoringJudge

SPECS, RUN = 60, 10


def estimated_and_real(real: RealModel) -> tuple[list[ArchitectureSpec], list[str]]:
    """Specs, and rows of what their scores add up to and what is measured."""
    judge = ScoringJudge(
        real.parent,
        BlockLibrary.from_folder(real.library, real.config, CheckpointReader(real.parent)),
        real.tokens("test", TEST_TOKENS),
        real.folder / "random",
        dtype=torch.bfloat16,
    )
    specs: list[ArchitectureSpec] = []
    estimated: list[float] = []
    measured: list[float] = []
    lines = [
        "| speed-up, predicted | specs | sum of scores, nats | KL, nats | Spearman |",
        "|---" * 5 + "|",
    ]

    def told(name: str, first: int) -> str:
        sums, kls = estimated[first:], measured[first:]
        return (
            f"| {name} | {len(sums)} | {min(sums):.2f} to {max(sums):.2f} "
            f"| {min(kls):.2f} to {max(kls):.2f} | {spearmanr(sums, kls).statistic:.3f} |"
        )

    for speedup in SPEEDUPS:
        first, problem = len(specs), real.problem(speedup)
        for number, spec in enumerate(random_specs(problem, SPECS // len(SPEEDUPS))):
            specs.append(spec)
            estimated.append(problem.score(problem.selection(spec)))
            key = f"random {speedup} {number}"
            measured.append(real.once(key, lambda spec=spec: judge.measure(spec)))
            print(key, estimated[-1], measured[-1], flush=True)
        lines.append(told(str(speedup), first))
    return specs, [*lines, told("all", 0)]


def predicted_and_run(real: RealModel, specs: list[ArchitectureSpec]) -> list[str]:
    """Rows of predicted and measured speed-ups, parent and children run in turn."""
    children = [real.child(spec) for spec in specs]
    found = {batch: real.speedups(children, batch) for batch in BATCHES}
    heads = " | ".join(f"batch {batch}: predicted | measured | error" for batch in BATCHES)
    lines = [f"| spec | {heads} |", "|---" * (1 + 3 * len(BATCHES)) + "|"]
    errors: dict[int, list[float]] = {batch: [] for batch in BATCHES}
    for number, spec in enumerate(specs):
        cells = [str(number + 1)]
        for batch in BATCHES:
            predicted, measured = real.predicted(spec, batch), found[batch][number]
            errors[batch].append(predicted / measured - 1)
            cells += [f"{predicted:.2f}", f"{measured:.2f}", f"{errors[batch][-1]:+.1%}"]
        lines.append(f"| {' | '.join(cells)} |")
    for batch in BATCHES:
        sizes = np.abs(errors[batch])
        told = f"median {np.median(sizes):.1%}, worst {max(sizes):.1%}"
        lines += ["", f"Batch {batch}: {told}."]
    return lines


def main() -> None:
    """Measure, and write the tables."""
    real, profile, out = opened(__doc__)
    device = profile.sidecar["device"]
    specs, additive = estimated_and_real(real)
    # Every sixth, so that all three speed-ups are among those that are run.
    run = predicted_and_run(real, specs[:: SPECS // RUN])
    lines = [
        f"# Random architectures of SmolLM2-135M, {today()}",
        "",
        f"{json.dumps(device)}; random choices at a predicted speed-up for one user, {SCENARIO}.",
        "",
        f"## Sums of scores against KL, bf16, {TEST_TOKENS:,} tokens of the test split",
        "",
        *additive,
        "",
        "## Predicted against measured tokens per second in llama.cpp, q8_0, over the parent's",
        "",
        *run,
    ]
    write_text(out / f"{today()}-smollm2-random-specs.md", "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
