"""From a recipe to a measured child, stage by stage."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from puzzle_search.arch import ArchitectureSpec, ParentConfig, SearchSpace
from puzzle_search.build import build_child
from puzzle_search.checkpoint import CheckpointReader, load_decoder, load_tokenizer
from puzzle_search.checkpoint.block_library import BlockLibrary
from puzzle_search.cost import (
    CostTable,
    Profile,
    Target,
)
from puzzle_search.cost.scaled import ScaledLatency
from puzzle_search.cost.serving import ServingOptions
from puzzle_search.data import Split, TokenStream, load_documents, sample_tokens
from puzzle_search.distill import DistillSettings, distill
from puzzle_search.errors import InputError
from puzzle_search.evaluate import measure_quality
from puzzle_search.files import Journal, file_hash, read_json, write_text
from puzzle_search.library import BldSettings, build_library
from puzzle_search.model import HeterogeneousDecoder
from puzzle_search.model.dtypes import torch_dtype
from puzzle_search.pipeline.checks import check_early, distill_settings
from puzzle_search.pipeline.given import (
    content_hash,
    parent_folder,
    parent_key,
    text_source,
)
from puzzle_search.pipeline.outcome import outcome
from puzzle_search.pipeline.probes import CANDIDATES, probe, write_candidates
from puzzle_search.pipeline.recipes.recipe import Recipe
from puzzle_search.pipeline.rounds import ScoringJudge
from puzzle_search.pipeline.run_directory import RunDirectory
from puzzle_search.pipeline.served import JOURNAL, Served, served_by
from puzzle_search.profile import Device, open_device
from puzzle_search.progress import Progress
from puzzle_search.report import Comparison, write_comparison
from puzzle_search.score import score_replacements
from puzzle_search.solve import ScoreTable, solve
from puzzle_search.solve.question.ask import PosedQuestion, pose_on
from puzzle_search.solve.question.inputs import SearchInputs
from puzzle_search.solve.question.run_folder import RECIPE, SPACE
from puzzle_search.solve.question.targets import cost_table, profile_target
from puzzle_search.solve.rounds.rounds import best_round, refine
from puzzle_search.solve.search.search import DEFAULT_BACKEND

_HELD_OUT_TOKENS = 4096  # on which distillation reports its losses


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """What a run leaves behind.

    Attributes:
        child: checkpoint folder.
        served: what serves it: the same folder, or the engine's file.
        comparison: predicted against measured.
        samples: prompts with the child's completions.
        skipped: stages that were done already.
        removed: stages whose results were made from what has changed since.
    """

    child: Path
    served: Path
    comparison: Comparison
    samples: list[dict[str, str]]
    skipped: list[str]
    removed: list[str]


def run_recipe(recipe: Recipe, run_dir: str | Path) -> RunResult:
    """Run every stage that is not done yet.

    Raises:
        InputError: a file that the recipe names is missing or damaged, or a run is at work in that
            directory.
        InfeasibleError: the speed-up asked for cannot be reached.
    """
    directory = RunDirectory(Path(run_dir))
    with directory.held():
        served = served_by(recipe, open_device(recipe.device))
        return Run(recipe, directory, served, parent_folder(recipe, directory)).all_stages()


class Run:
    """The stages of one recipe in one run directory.

    Attributes set as stages are done are the files and folders that later stages read.
    """

    def __init__(
        self, recipe: Recipe, directory: RunDirectory, served: Served, parent: Path
    ) -> None:
        self.recipe = recipe
        self.directory = directory
        self.serves = served
        self.parent = parent
        self.scenario = recipe.workload()
        self.device: Device = served.device
        self.config = ParentConfig.from_file(parent)
        CheckpointReader(parent).check(self.config)
        self.space = SearchSpace.from_file(recipe.space, self.config)
        check_early(recipe, parent, self.config, self.space)
        served.check(parent, self.config, self.space)
        self.parent_key = parent_key(parent)

    def all_stages(self) -> RunResult:
        """Do every stage that is not done yet."""
        recipe, stage = self.recipe, self.directory.stage
        self._record_recipe()
        shape = [self.parent_key, asdict(self.space), recipe.scenario, recipe.dtype]
        self.source = text_source(recipe, self.directory, self.parent, self.device.torch_device)
        data = recipe.data.model_dump() | {"sha256": content_hash(self.source)}
        machine = [recipe.profile.model_dump(), self.serves.identity]
        profile = stage("profile", [shape, machine], [], self._profile)
        self.profile = Profile.from_folder(profile)
        bench = recipe.bench.model_dump()
        self.baseline = stage("baseline", bench, ["profile"], self._baseline) / "baseline.json"
        library = [self.parent_key, asdict(self.space), data, recipe.library.model_dump()]
        self.library = stage("library", library, [], self._library)
        scored = [data, recipe.score.model_dump()]
        self.scores = stage("score", scored, ["library"], self._score) / "scores.csv"
        asked = recipe.solve.model_dump()
        solved = stage("solve", asked, ["baseline", "score"], self._solve)
        self.spec, made_by = solved / "architecture.yaml", "solve"
        if recipe.solve.candidates > 1:
            heals = [data, recipe.distill and recipe.distill.model_dump()]
            self.spec = stage("probe", heals, ["solve", "library"], self._probe) / self.spec.name
            made_by = "probe"
        else:
            self.directory.drop("probe")
        self.built = stage("build", None, [made_by, "library"], self._build) / "child"
        self.child, made_by = self.built, "build"
        if recipe.distill is not None:
            distilled = [data, recipe.distill.model_dump()]
            self.child = stage("distill", distilled, ["build"], self._distill) / "child"
            made_by = "distill"
        else:
            self.directory.drop("distill")
        self.served, written_by = self.child, made_by
        if recipe.engine is not None:
            exported = stage("export", recipe.engine.model_dump(), [made_by], self._export)
            self.served, written_by = self.serves.file(self.child, exported), "export"
        else:
            self.directory.drop("export")
        judged = [recipe.judged_on, recipe.data.length, content_hash(recipe.judged_on)]
        evaluated = [judged, recipe.evaluate.model_dump()]
        self.quality = stage("evaluate", evaluated, [made_by], self._evaluate) / "quality.json"
        self.bench = stage("bench", bench, [written_by, "baseline"], self._bench) / "bench.json"
        prompts = recipe.generate.model_dump()
        samples = stage("generate", prompts, [written_by], self._generate) / "samples.json"
        comparison = outcome(self)
        write_comparison(comparison, self.directory.folder)
        return RunResult(
            child=self.child,
            served=self.served,
            comparison=comparison,
            samples=json.loads(samples.read_text()),
            skipped=self.directory.skipped,
            removed=self.directory.removed,
        )

    def _record_recipe(self) -> None:
        """Keep recipe and search space in the run directory, which can go on by them alone."""
        folder = self.directory.folder
        write_text(folder / SPACE, Path(self.recipe.space).read_text(encoding="utf-8"))
        kept = self.recipe.model_copy(update={"space": SPACE})
        write_text(folder / RECIPE, kept.to_yaml())

    def _decoder(self, folder: str | Path) -> HeterogeneousDecoder:
        dtype = torch_dtype(self.recipe.dtype)
        return load_decoder(folder, dtype=dtype, device=self.device.torch_device)

    def tokens(self, split: Split, count: int) -> torch.Tensor:
        """Blocks of tokens of a split, (blocks, length); those of test are to judge on."""
        source = self.recipe.judged_on if split == "test" else self.source
        blocks = sample_tokens(
            load_documents(source, split),
            load_tokenizer(self.parent),
            length=self.recipe.data.length,
            tokens=count,
        )
        return blocks.ids.to(self.device.torch_device)

    def _profile(self, folder: Path) -> None:
        self.profile = self.serves.profile(self.config, self.space, folder)
        try:
            self.cost_table(1.0)
        except InputError as error:  # times that others' work has drowned
            (folder / JOURNAL).unlink(missing_ok=True)
            raise InputError(
                error.message,
                remedy="run it again while nothing else runs here: the profile is measured anew",
            ) from error
        self.profile.write(folder)

    def _target(self, scalar: float) -> Target:
        target = profile_target(self.profile, serving=ServingOptions(mode="static"))
        return replace(target, latency=ScaledLatency(base=target.latency, scalar=scalar))

    def cost_table(self, scalar: float) -> CostTable:
        """What the search space costs in the run's scenario, times scaled."""
        return cost_table(self.config, self.space, self._target(scalar), self.scenario)

    def asked(self) -> PosedQuestion:
        """What the solver is asked, once the parent is measured and replacements are scored."""
        scores = ScoreTable.from_file(self.scores)
        hashes = {
            "scores": file_hash(self.scores),
            "space": file_hash(self.directory.folder / SPACE),
            "profile": str(self.profile.sidecar["latency_sha256"]),
        }
        target = self._target(self.read(self.baseline)["engine_scalar"])
        return pose_on(
            self.recipe.question(target.gpu),
            SearchInputs(config=self.config, space=self.space, scores=scores, hashes=hashes),
            target,
        )

    def _baseline(self, folder: Path) -> None:
        """Measure the parent, at the batch where its prediction is fastest."""
        predicted = self.cost_table(1.0).best_cost(ArchitectureSpec.identity(self.config))
        if predicted is None:
            raise InputError(
                f"{self.config.name} does not fit on {self.device.name} at any batch size profiled",
                remedy="profile smaller batches, or use a device with more memory",
            )
        served = self.serves.file(self.parent, folder)
        [measured] = self.serves.measure([(served, predicted.point.batch)], "baseline")
        baseline = {
            "predicted_tokens_per_second": predicted.tokens_per_second_per_gpu,
            "engine_scalar": predicted.tokens_per_second_per_gpu / measured.tokens_per_second,
            "measured": measured.as_dict(),
        }
        write_text(folder / "baseline.json", json.dumps(baseline, indent=1))

    def _library(self, folder: Path) -> None:
        section = self.recipe.library
        build_library(
            self.parent,
            self.space,
            self.tokens("train", max(section.tokens, section.calibration_tokens)),
            self.tokens("validation", section.held_out_tokens),
            folder,
            BldSettings(
                tokens=section.tokens,
                batch_tokens=section.batch_tokens,
                learning_rate=section.learning_rate,
            ),
            calibration_tokens=section.calibration_tokens,
            progress=Progress("library"),
        )

    def _score(self, folder: Path) -> None:
        section = self.recipe.score
        reader = CheckpointReader(self.parent)
        scores = score_replacements(
            self.parent,
            BlockLibrary.from_folder(self.library, self.config, reader),
            list(self.space.replacements(self.config, composed=section.composed)),
            self.tokens("validation", section.tokens),
            journal=Journal(folder / "journal.jsonl"),
            device=self.recipe.device,
            dtype=torch_dtype(self.recipe.dtype),
            progress=Progress("score"),
        )
        table = scores.table(self.config.name, data=f"{self.recipe.data.source}, validation split")
        table.write(folder / "scores.csv")

    def _solve(self, folder: Path) -> None:
        section, asked = self.recipe.solve, self.asked()
        rounds: dict[str, Any] = {}
        if section.rounds:
            done = list(
                refine(
                    asked.problem,
                    self._judge(folder / "rounds"),
                    rounds=section.rounds,
                    trust_layers=section.trust_layers,
                    max_seconds=section.max_seconds,
                )
            )
            solution = best_round(done).solution
            rounds = {"rounds": [entry.as_dict() for entry in done]}
        else:
            solution = solve(asked.problem, max_seconds=section.max_seconds)
        answer = asked.judged(
            asked.answer(solution), max_seconds=section.max_seconds, backend=DEFAULT_BACKEND
        )
        for remark in answer.remarks:  # now, before hours are spent on it
            print(f"note: {remark}", file=sys.stderr)
        answer = replace(answer, origins={**answer.origins, **rounds})
        answer.spec.write(folder / "architecture.yaml")
        if section.candidates > 1:
            write_candidates(asked, solution, section, folder / CANDIDATES)
        write_text(folder / "solution.json", json.dumps(answer.as_dict(), indent=1))

    def _judge(self, folder: Path) -> ScoringJudge:
        """Measures children on the tokens that replacements were scored on."""
        return ScoringJudge(
            self.parent,
            BlockLibrary.from_folder(self.library, self.config, CheckpointReader(self.parent)),
            self.tokens("validation", self.recipe.score.tokens),
            folder,
            metric=self.recipe.solve.metric,
            device=self.recipe.device,
            dtype=torch_dtype(self.recipe.dtype),
        )

    def _probe(self, folder: Path) -> None:
        probe(self, sorted((self.directory.folder / "solve" / CANDIDATES).iterdir()), folder)

    def _build(self, folder: Path) -> None:
        spec = ArchitectureSpec.from_file(self.spec)
        build_child(self.parent, self.library, spec, folder / "child")

    def _distill(self, folder: Path) -> None:
        assert self.recipe.distill is not None
        settings = distill_settings(self.recipe.distill, self.recipe.dtype)
        self.distil(self.built, folder / "child", settings, Progress("distill"))

    def distil(self, child: Path, out: Path, settings: DistillSettings, progress: Progress) -> None:
        """Distil a child on the recipe's train split."""
        data = self.recipe.data
        tokenizer = load_tokenizer(self.parent)
        held_out = sample_tokens(
            load_documents(self.source, "validation"),
            tokenizer,
            length=data.length,
            tokens=_HELD_OUT_TOKENS,
        )
        distill(
            self.parent,
            child,
            out,
            TokenStream(load_documents(self.source, "train"), tokenizer, length=data.length),
            held_out,
            settings,
            device=self.recipe.device,
            progress=progress,
        )

    def _export(self, folder: Path) -> None:
        self.serves.file(self.child, folder)

    def _evaluate(self, folder: Path) -> None:
        """Measure the child, and where it was distilled, what it was before."""
        ids = self.tokens("test", self.recipe.evaluate.tokens)
        parent = self._decoder(self.parent)
        found = {
            name: measure_quality(parent, self._decoder(child), ids).as_dict()
            for name, child in {"built": self.built, "child": self.child}.items()
            if name == "child" or child != self.child
        }
        write_text(folder / "quality.json", json.dumps(found, indent=1))

    def _bench(self, folder: Path) -> None:
        """Measure parent and child in turn, each at its best batch."""
        parent = self.serves.file(self.parent, self.baseline.parent)
        parent_batch = self.read(self.baseline)["measured"]["batch"]
        spec = ArchitectureSpec.from_file(self.spec)
        child_batch = spec.solution["scenarios"][0]["batch"]
        measured = self.serves.measure(
            [(parent, parent_batch), (self.served, child_batch)], "bench"
        )
        figures = {
            name: entry.as_dict() for name, entry in zip(("parent", "child"), measured, strict=True)
        }
        write_text(folder / "bench.json", json.dumps(figures, indent=1))

    def _generate(self, folder: Path) -> None:
        texts = self.serves.texts(self.served)
        samples = [
            {"prompt": prompt, "completion": text}
            for prompt, text in zip(self.recipe.generate.prompts, texts, strict=True)
        ]
        write_text(folder / "samples.json", json.dumps(samples, indent=1))

    @staticmethod
    def read(file: Path) -> dict[str, Any]:
        """What a stage wrote."""
        return read_json(file, remedy=f"remove {file.parent} and run again")
