"""A real model in a real engine: children of SmolLM2-135M in llama.cpp, by several ways to choose.

    python experiments/paper/real_model.py runs/smollm2 --profile PROFILE --library LIBRARY \
        --scores SCORES --out bench/results

Every way chooses a child for each speed-up asked of the predicted tokens per second of one user;
children are built, exported in q8_0 and run in llama.cpp beside the parent, in turn. Quality is KL
to the parent on text that no choice saw. Results are kept in the folder; run again, it goes on.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from baselines import greedy, uniform
from paper_methods import fewest_layers_dropped

from puzzle_search.arch import ArchitectureSpec, SearchSpace
from puzzle_search.build import build_child
from puzzle_search.checkpoint import load_decoder, load_tokenizer
from puzzle_search.cost import CostTable, Profile, Scenario
from puzzle_search.cost.serving import ServingOptions
from puzzle_search.data import load_documents, sample_tokens
from puzzle_search.evaluate import measure_gguf_files, measure_quality
from puzzle_search.export import plan_export, write_export
from puzzle_search.files import Journal, resume_journal, value_hash, write_text
from puzzle_search.progress import Progress
from puzzle_search.solve import Limits, Problem, ScoreTable, Workload, formulate, solve
from puzzle_search.solve.question.targets import cost_table, profile_target

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "smollm2-135m"
SPEEDUPS = (1.25, 1.5, 2.0)
BATCHES = (1, 8)
SCENARIO = Scenario(input_len=128, output_len=128)
LENGTH, TEST_TOKENS, INFLUENCE_TOKENS = 256, 8192, 2048
ITERATIONS = 5

Choose = Callable[[float], ArchitectureSpec | None]


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A child of one way to choose; speed-ups are over the parent, by batch size."""

    asked: float
    way: str
    child: Path
    predicted: dict[int, float]
    measured: dict[int, float]
    quality: dict[str, Any]


class RealModel:
    """Parent, library, scores and costs; children by specs, and what was measured of them."""

    def __init__(self, folder: Path, library: Path, scores: Path, profile: Path) -> None:
        self.folder, self.library = folder, library
        self.parent, self.text = EXAMPLE / "parent", EXAMPLE / "text"
        self.model = load_decoder(self.parent, dtype=torch.float32)
        self.config = self.model.config
        self.space = SearchSpace.from_file(EXAMPLE / "space.yaml", self.config)
        self.scores = ScoreTable.from_file(scores)
        measured = Profile.from_folder(profile)
        self.target = profile_target(measured, serving=ServingOptions(mode="static"))
        self.costs = {batch: self.cost_table(self.space, batch) for batch in BATCHES}
        self.journal = Journal(folder / "journal.jsonl")
        made_from = {
            "scores": value_hash(scores.read_text()),
            "profile": measured.sidecar["latency_sha256"],
        }
        self.known = {
            line["key"]: line["value"] for line in resume_journal(self.journal, made_from, dict)
        }

    def once(self, key: str, make: Callable[[], Any]) -> Any:
        """The value of a key: from the journal, or made now and journaled."""
        if key not in self.known:
            self.known[key] = make()
            self.journal.append({"key": key, "value": self.known[key]})
        return self.known[key]

    def predicted(self, spec: ArchitectureSpec, batch: int) -> float:
        """Predicted tokens per second over the parent's."""
        own = ArchitectureSpec.identity(self.config)
        child, parent = (self.costs[batch].cost(each, 0) for each in (spec, own))
        return child.tokens_per_second_per_gpu / parent.tokens_per_second_per_gpu

    def cost_table(self, space: SearchSpace, batch: int) -> CostTable:
        """A whole space priced at one batch size."""
        return cost_table(self.config, space, self.target, SCENARIO, batches=[batch])

    def problem(self, speedup: float, *, space: SearchSpace | None = None) -> Problem:
        """Least damage at a multiple of the parent's predicted tokens per second, batch 1."""
        own = self.costs[1].cost(ArchitectureSpec.identity(self.config), 0)
        limits = Limits(tokens_per_second_per_gpu=own.tokens_per_second_per_gpu * speedup)
        space = space or self.space
        workload = Workload.on_device(self.cost_table(space, 1), limits)
        return formulate(self.config, space, self.scores, [workload])

    def tokens(self, split: str, count: int) -> torch.Tensor:
        """Blocks of tokens of a split, (blocks, length)."""
        documents = load_documents(str(self.text), split)
        tokenizer = load_tokenizer(self.parent)
        return sample_tokens(documents, tokenizer, length=LENGTH, tokens=count).ids

    def child(self, spec: ArchitectureSpec) -> Path:
        """Folder of a child, with its ``child.gguf``."""
        key = value_hash([asdict(block) for block in spec.blocks])
        folder = self.folder / "children" / key
        if not folder.exists():
            build_child(self.parent, self.library, spec, folder)
        self.file(folder)
        return folder

    def file(self, model: Path) -> Path:
        """The GGUF file of a checkpoint folder, in q8_0."""
        file = self.folder / "gguf" / f"{model.name}.gguf"
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            write_export(plan_export(model, "llama.cpp", dtype="q8_0"), model, file)
        return file

    def quality(self, child: Path) -> dict[str, Any]:
        """Held-out quality on the test split."""

        def measure() -> dict[str, Any]:
            ids = self.tokens("test", TEST_TOKENS)
            model = load_decoder(child, dtype=torch.float32)
            return measure_quality(self.model, model, ids).as_dict()

        found: dict[str, Any] = self.once(f"quality {child.name}", measure)
        return found

    def speedups(self, children: list[Path], batch: int) -> list[float]:
        """Measured tokens per second over the parent's, all run in turn."""

        def measure() -> list[float]:
            files = [self.file(model) for model in (self.parent, *children)]
            own, *others = measure_gguf_files(
                files, SCENARIO, batch=batch, iterations=ITERATIONS, progress=Progress("llama.cpp")
            )
            # Of each round: what slows the machine slows parent and child alike.
            return [float(np.median(np.divide(other.samples, own.samples))) for other in others]

        names = " ".join(child.name for child in children)
        found: list[float] = self.once(f"speedups {batch} {names}", measure)
        return found


def ways_to_choose(real: RealModel) -> dict[str, Choose]:
    """The solver, and what it is held against."""
    influence = real.once("influence", lambda: block_influence(real))
    # llama.cpp runs no model without any attention.
    attending = SearchSpace.uniform(
        real.config,
        attention=[name for name in real.space.all_variants("attention") if name.startswith("gqa")],
        ffn=real.space.all_variants("ffn"),
    )
    return {
        "puzzle-search": lambda asked: solve(real.problem(asked)).spec,
        "greedy": lambda asked: greedy(real.problem(asked)),
        "uniform": lambda asked: uniform(real.problem(asked, space=attending)),
        "layers dropped, by scores": lambda asked: fewest_layers_dropped(
            real.problem(asked), real.scores, real.config
        ),
        "layers dropped, by block influence": lambda asked: dropped_in_order(
            real.problem(asked), list(np.argsort(influence)), real
        ),
    }


@torch.inference_mode()
def block_influence(real: RealModel) -> list[float]:
    """1 - cosine of a layer's input and output, mean over tokens (ShortGPT, arXiv 2403.03853)."""
    ids = real.tokens("validation", INFLUENCE_TOKENS)
    states = [real.model.embedding(ids), *real.model.block_states(ids)]
    return [
        float(1 - torch.cosine_similarity(before, after, dim=-1).mean())
        for before, after in itertools.pairwise(states)
    ]


def dropped_in_order(
    problem: Problem, order: list[int], real: RealModel
) -> ArchitectureSpec | None:
    """Whole layers dropped in an order until the throughput is reached, if it is."""
    pairs = [(real.config.attention, real.config.ffn)] * real.config.num_layers
    for layer in order:
        pairs[layer] = ("no_op", "no_op")
        spec = ArchitectureSpec.of(real.config.name, pairs)
        if problem.operating_points(problem.selection(spec)) is not None:
            return spec
    return None


def measured_choices(real: RealModel) -> list[Measured]:
    """Every way at every speed-up, built and measured."""
    ways = ways_to_choose(real)
    found = []
    for asked in SPEEDUPS:
        chosen = {name: way(asked) for name, way in ways.items()}
        specs = {name: spec for name, spec in chosen.items() if spec is not None}
        children = [real.child(spec) for spec in specs.values()]
        speedups = {batch: real.speedups(children, batch) for batch in BATCHES}
        found += [
            Measured(
                asked=asked,
                way=name,
                child=children[number],
                predicted={batch: real.predicted(spec, batch) for batch in BATCHES},
                measured={batch: speedups[batch][number] for batch in BATCHES},
                quality=real.quality(children[number]),
            )
            for number, (name, spec) in enumerate(specs.items())
        ]
    return found


def table_of_choices(children: list[Measured]) -> list[str]:
    """Rows of every way at every speed-up: predicted and measured speed, KL, accuracy kept."""
    lines = [
        "| asked | chosen by | batch 1: predicted | measured | batch 8: predicted | measured "
        "| KL, nats | accuracy kept |",
        "|---" * 8 + "|",
    ]
    for child in children:
        speeds = [
            f"{of[batch]:.2f}" for batch in BATCHES for of in (child.predicted, child.measured)
        ]
        quality = child.quality
        lines.append(
            f"| {child.asked} | {child.way} | {' | '.join(speeds)} "
            f"| {quality['kl']:.2f} ± {quality['kl_stderr']:.2f} "
            f"| {quality['accuracy_preserved']:.0%} |"
        )
    return lines


def errors_told(children: list[Measured], batch: int) -> str:
    """How far predicted speed-ups at a batch size are from the measured ones."""
    errors = [abs(child.predicted[batch] / child.measured[batch] - 1) for child in children]
    return f"batch {batch}: median {np.median(errors):.1%}, worst {max(errors):.1%}"


def opened(doc: str | None) -> tuple[RealModel, Profile, Path]:
    """What an experiment's command line names: the model, its profile, and where results go."""
    parser = argparse.ArgumentParser(description=(doc or "").partition("\n")[0])
    parser.add_argument("folder", type=Path)
    for name in ("--profile", "--library", "--scores", "--out"):
        parser.add_argument(name, type=Path, required=True)
    given = parser.parse_args()
    real = RealModel(given.folder, given.library, given.scores, given.profile)
    return real, Profile.from_folder(given.profile), given.out


def today() -> str:
    """The date of results."""
    return datetime.datetime.now(datetime.UTC).date().isoformat()


def main() -> None:
    """Measure, and write the tables."""
    real, profile, out = opened(__doc__)
    device = profile.sidecar["device"]
    children = measured_choices(real)
    lines = [
        f"# Children of SmolLM2-135M in llama.cpp, {today()}",
        "",
        f"{json.dumps(device)}; q8_0, {SCENARIO}, parent and children in turn, medians of "
        f"{ITERATIONS}. KL on {TEST_TOKENS:,} tokens that no choice saw, before any distillation "
        "of whole children. Asked: tokens per second of one user, as a multiple of the parent's. "
        "Command: `python experiments/paper/real_model.py`.",
        "",
        *table_of_choices(children),
        "",
        f"Predicted against measured speed-up over these {len(children)} children: "
        + "; ".join(errors_told(children, batch) for batch in BATCHES)
        + ".",
    ]
    write_text(out / f"{today()}-smollm2-llama-cpp.md", "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
