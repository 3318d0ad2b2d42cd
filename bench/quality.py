"""Is the solver's child better than what people do without a solver? Real KL on held-out text.

    python bench/quality.py examples/stdlib-lm/recipe.yaml runs/stdlib-lm

Finishes the run if it is not done, then builds children of equal predicted cost from its library
(greedy, best uniform, 20 random) and the solver's own spec from an untrained library, and
measures KL to the parent on the test split. Prints a table and one JSON line.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections import defaultdict
from pathlib import Path

import torch

from puzzle_search.arch import ArchitectureSpec, SearchSpace
from puzzle_search.build import build_child
from puzzle_search.checkpoint import load_decoder
from puzzle_search.evaluate import measure_quality
from puzzle_search.library import BldSettings, build_library
from puzzle_search.pipeline.recipe import read_recipe
from puzzle_search.pipeline.run import Run
from puzzle_search.pipeline.run_directory import RunDirectory
from puzzle_search.solve import Problem
from puzzle_search.solve.baselines import greedy, random_specs, uniform


def predicted(problem: Problem, spec: ArchitectureSpec) -> float:
    """Tokens per second at the best operating point within the limits."""
    points = problem.operating_points(problem.selection(spec))
    assert points is not None, "baselines keep the limits"
    return problem.workloads[0].table.cost(spec, points[0]).tokens_per_second_per_gpu


def main() -> None:
    """Print the table and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--random", type=int, default=20)
    args = parser.parse_args()
    run = Run(read_recipe(args.recipe), RunDirectory(args.run_dir))
    run.all_stages()
    problem, ids = run.problem(), run.tokens("test", run.recipe.evaluate.tokens)
    spec = ArchitectureSpec.from_file(run.spec)

    def damage(candidate: ArchitectureSpec, library: Path) -> float:
        with tempfile.TemporaryDirectory() as folder:
            child = build_child(
                run.recipe.parent, library, candidate, Path(folder) / "child", dtype="fp32"
            )
            return measure_quality(run.parent, load_decoder(child), ids).kl

    def untrained() -> float:
        """The solver's spec from initialisations alone."""
        space = SearchSpace(
            attention=tuple((block.attention,) for block in spec.blocks),
            ffn=tuple((block.ffn,) for block in spec.blocks),
        )
        section = run.recipe.library
        with tempfile.TemporaryDirectory() as folder:
            build_library(
                run.recipe.parent,
                space,
                run.tokens("train", section.calibration_tokens),
                run.tokens("validation", section.held_out_tokens),
                Path(folder) / "library",
                BldSettings(tokens=0),
                calibration_tokens=section.calibration_tokens,
            )
            return damage(spec, Path(folder) / "library")

    figures: dict[str, float] = {"solver": damage(spec, run.library)}
    throughput = {"solver": predicted(problem, spec)}
    for name, found in (("greedy", greedy(problem)), ("best uniform", uniform(problem))):
        if found is not None:
            figures[name] = damage(found, run.library)
            throughput[name] = predicted(problem, found)
    chance = random_specs(problem, args.random)
    kls = [damage(candidate, run.library) for candidate in chance]
    figures[f"random (median of {len(kls)})"] = statistics.median(kls)
    throughput[f"random (median of {len(kls)})"] = statistics.median(
        predicted(problem, candidate) for candidate in chance
    )
    figures["solver's spec, untrained"] = untrained()

    print(f"KL to the parent on {ids.numel()} held-out tokens; throughput as predicted")
    for name, kl in figures.items():
        tps = f"{throughput[name]:10,.0f} tok/s" if name in throughput else ""
        print(f"  {name:28} {kl:8.4f} {tps}")
    initial, trained = defaultdict(float), defaultdict(float)
    entries = json.loads((run.library / "library.json").read_text())["entries"]
    for entry in entries:
        kind = " ".join(f"{part} {entry[part]}" for part in ("attention", "ffn") if entry[part])
        initial[kind] += entry["loss_initial"]
        trained[kind] += entry["loss_trained"]
    print("block loss over all layers, before and after distillation")
    for kind, before in initial.items():
        print(f"  {kind:28} {before:8.4f} {trained[kind]:8.4f}  {trained[kind] / before - 1:+.1%}")
    result = {
        "bench": "quality",
        "threads": torch.get_num_threads(),
        "kl": figures,
        "random": kls,
        "predicted_tokens_per_second": throughput,
        "block_loss": {kind: [initial[kind], trained[kind]] for kind in initial},
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
