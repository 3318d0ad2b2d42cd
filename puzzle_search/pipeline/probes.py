"""Which of several children distillation heals best, by short probes of it."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from puzzle_search.arch import ArchitectureSpec
from puzzle_search.build import build_child
from puzzle_search.distill.distill import RECORD
from puzzle_search.distill.halving import best_child, successive_halving
from puzzle_search.files import read_json, write_text
from puzzle_search.pipeline.checks import distill_settings, tokens_of_probes
from puzzle_search.pipeline.run_directory import PROBES
from puzzle_search.progress import Progress
from puzzle_search.solve.answers.candidates import candidates

if TYPE_CHECKING:
    from puzzle_search.pipeline.recipes.recipe import SolveSection
    from puzzle_search.pipeline.run import Run
    from puzzle_search.solve.question.ask import PosedQuestion
    from puzzle_search.solve.search.solution import Solution


CANDIDATES = "candidates"


def write_candidates(
    asked: PosedQuestion, solution: Solution, section: SolveSection, folder: Path
) -> None:
    """Write the specs that probes choose among, the answer's first."""
    found = candidates(
        asked.problem,
        solution,
        asked.inputs.config,
        section.candidates,
        max_seconds=section.max_seconds,
    )
    for number, one in enumerate(found):
        asked.answer(one).spec.write(folder / f"{number:02}.yaml")


def probe(run: Run, specs: list[Path], folder: Path) -> None:
    """Build the candidates, distil them a little, and keep the spec of the best.

    Writes ``architecture.yaml`` and ``probes.json``; a probe that is done is not repeated.
    """
    section = run.recipe.distill
    assert section is not None
    settings = distill_settings(section, run.recipe.dtype)

    def heal(child: int, rung: int, tokens: int) -> float:
        name = f"candidate {child + 1} of {len(specs)}, rung {rung + 1}"
        own = folder / "children" / str(child)
        built = own / "built"
        if not built.exists():
            spec = ArchitectureSpec.from_file(specs[child])
            build_child(run.parent, run.library, spec, built)
        out = own / f"rung-{rung}"
        run.distil(
            own / f"rung-{rung - 1}" if rung else built,
            out,
            replace(settings, tokens=tokens),
            Progress(f"probe {name}"),
        )
        record = read_json(out / RECORD, remedy=f"remove {own} and run again")
        return float(record["held_out"]["after"]["held_out_kl"])

    tokens = tokens_of_probes(run.recipe, len(specs))
    probes = successive_halving(len(specs), tokens, heal)
    chosen = best_child(probes)
    scores = [ArchitectureSpec.from_file(file).solution["score"] for file in specs]
    found = {
        "candidates": scores,
        "chosen": chosen,
        "tokens": sum(one.tokens for one in probes),
        "probes": [asdict(one) for one in probes],
    }
    write_text(folder / PROBES, json.dumps(found, indent=1))
    spec = ArchitectureSpec.from_file(specs[chosen])
    spec.write(folder / "architecture.yaml")


def told(found: dict[str, Any]) -> str:
    """What the probes cost and what they changed, in words."""
    last = [one for one in found["probes"] if one["rung"] == found["probes"][-1]["rung"]]
    ranked = sorted(last, key=lambda one: one["held_out_kl"])
    kls = ", ".join(f"{one['held_out_kl']:.3g} (candidate {one['child'] + 1})" for one in ranked)
    chosen = (
        "the answer of least summed damage was best"
        if found["chosen"] == 0
        else f"candidate {found['chosen'] + 1} took the place of the answer of least summed damage"
    )
    return (
        f"probes of {len(found['candidates'])} children on {found['tokens']:,} tokens in all: "
        f"{chosen}; held-out KL {kls} nats"
    )
