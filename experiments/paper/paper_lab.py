"""What the claims of `paper.py` are measured with; every result is kept and taken up again.

A lab has one parent, one device, one scenario, and a folder. Children, libraries and score tables
lie in that folder; figures in its ``journal.jsonl``, so that a killed run goes on where it was.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from paper_pairing import Choose, Paired, pair

from puzzle_search.arch import ArchitectureSpec, SearchSpace
from puzzle_search.build import build_child
from puzzle_search.checkpoint import CheckpointReader, load_decoder, load_tokenizer
from puzzle_search.checkpoint.block_library import BlockLibrary
from puzzle_search.cost import CostTable, Profile, Scenario, Target, parse_dtype
from puzzle_search.data import Split, TokenStream, load_documents, sample_tokens
from puzzle_search.distill import DistillSettings, distill
from puzzle_search.evaluate import measure_checkpoints, measure_quality
from puzzle_search.files import Journal, resume_journal, value_hash
from puzzle_search.library import BldSettings, build_library
from puzzle_search.model import HeterogeneousDecoder
from puzzle_search.model.dtypes import torch_dtype
from puzzle_search.pipeline.rounds import ScoringJudge
from puzzle_search.profile import ProfileGrid, measure_profile, open_device
from puzzle_search.progress import Progress
from puzzle_search.score import score_replacements
from puzzle_search.solve import Limits, Problem, ScoreTable, Workload, formulate
from puzzle_search.solve.question.targets import cost_table, profile_target
from puzzle_search.solve.rounds.rounds import Judge, refine


@dataclass(frozen=True, kw_only=True)
class LabSettings:
    """How much is spent on each figure.

    Attributes:
        data: source of text.
        length: tokens in a block.
        scenario: input and output tokens.
        batches: sizes that are profiled.
        bld_tokens: of the full block library, for each variant.
        score_tokens: on which replacements are scored and rounds judge.
        test_tokens: on which children are compared with their parent.
        gkd_tokens: of the short distillation that methods are compared after.
        long_gkd_tokens: of the distillation of the child that is kept.
        gkd_learning_rate: its peak.
        long_gkd_learning_rate: likewise, of the long one.
        gkd_batch_tokens: of a step of distillation.
        random_specs: architectures of the rank correlation, and the median of random ones.
        iterations: counted runs of each throughput.
        device: ``cpu`` or ``cuda``.
        dtype: of every computation.
    """

    data: str = "python-stdlib"
    length: int = 128
    scenario: str = "128/128"
    batches: tuple[int, ...] = (8, 32)
    bld_tokens: int = 65536
    score_tokens: int = 4096
    test_tokens: int = 16384
    gkd_tokens: int = 32768
    long_gkd_tokens: int = 2**21
    gkd_learning_rate: float = 5e-4
    long_gkd_learning_rate: float = 1e-3
    gkd_batch_tokens: int = 1024
    random_specs: int = 100
    iterations: int = 5
    device: str = "cpu"
    dtype: str = "fp32"


class Lab:
    """Makes libraries, scores, problems, children and figures, each once."""

    def __init__(self, parent: Path, space: Path, folder: Path, settings: LabSettings) -> None:
        self.parent = parent
        self.folder = folder
        self.settings = settings
        self.device = open_device(settings.device)
        self.model = self._load(parent)
        self.config = self.model.config
        self.space = SearchSpace.from_file(space, self.config)
        self.scenario = Scenario.parse(settings.scenario)
        self._reader = CheckpointReader(parent)
        self._journal = Journal(folder / "journal.jsonl")
        made_from = {"parent": self._reader.sha256, "settings": value_hash(asdict(settings))}
        self._known = {
            line["key"]: line["value"] for line in resume_journal(self._journal, made_from, dict)
        }

    def once(self, key: str, make: Callable[[], Any]) -> Any:
        """The value of a key: from the journal, or made now and journaled."""
        if key not in self._known:
            value = make()
            self._journal.append({"key": key, "value": value})
            self._known[key] = value
        return self._known[key]

    def tokens(self, split: Split, count: int) -> torch.Tensor:
        """Blocks of tokens of a split, (blocks, length)."""
        return sample_tokens(
            load_documents(self.settings.data, split),
            load_tokenizer(self.parent),
            length=self.settings.length,
            tokens=count,
        ).ids

    @cached_property
    def score_ids(self) -> torch.Tensor:
        """Tokens of the validation split on which damage is judged."""
        return self.tokens("validation", self.settings.score_tokens)

    @cached_property
    def test_ids(self) -> torch.Tensor:
        """Tokens of the test split, which no search sees."""
        return self.tokens("test", self.settings.test_tokens)

    def _load(self, folder: Path) -> HeterogeneousDecoder:
        dtype = torch_dtype(self.settings.dtype)
        return load_decoder(folder, dtype=dtype, device=self.device.torch_device)

    @cached_property
    def target(self) -> Target:
        """This machine, by a profile of it."""
        folder = self.folder / "profile"
        if not (folder / "profile.yaml").exists():
            grid = ProfileGrid.around(self.scenario, batches=self.settings.batches)
            dtype = parse_dtype(self.settings.dtype)
            measure_profile(
                self.config, self.space, self.device, dtype, grid, progress=Progress("profile")
            ).write(folder)
        return profile_target(Profile.from_folder(folder))

    @cached_property
    def costs(self) -> CostTable:
        """The whole search space, priced."""
        return cost_table(self.config, self.space, self.target, self.scenario)

    def library(
        self, share: float = 1.0, *, coupled: SearchSpace | None = None, name: str = "decoupled"
    ) -> Path:
        """Folder of a block library trained on a share of the tokens."""
        tokens = int(self.settings.bld_tokens * share)
        folder = self.folder / f"library-{name}-{tokens}"
        if not (folder / "library.json").exists():
            build_library(
                self.parent,
                coupled or self.space,
                self.tokens("train", max(self.settings.bld_tokens, 16384)),
                self.tokens("validation", 8192),
                folder,
                BldSettings(tokens=tokens),
                device=self.settings.device,
                dtype=self.settings.dtype,
                coupled=coupled is not None,
                start_from=None if coupled is None else self.library(share),
                progress=Progress(f"library {name}, {tokens} tokens"),
            )
        return folder

    def open_library(self, folder: Path) -> BlockLibrary:
        """A finished library."""
        return BlockLibrary.from_folder(folder, self.config, self._reader)

    def scores(self, library: Path, *, space: SearchSpace | None = None) -> ScoreTable:
        """Composed replace-1-block scores of a library, in KL and in LM loss."""
        file = self.folder / f"scores-{library.name}.csv"
        if not file.exists():
            score_replacements(
                self.parent,
                self.open_library(library),
                list((space or self.space).replacements(self.config)),
                self.score_ids,
                journal=Journal(file.with_suffix(".jsonl")),
                metrics=["kl", "lm_loss"],
                progress=Progress(f"score {library.name}"),
                **self._computing,
            ).table(self.config.name, data=f"{self.settings.data}, validation split").write(file)
        return ScoreTable.from_file(file)

    @property
    def _computing(self) -> dict[str, Any]:
        return {"device": self.settings.device, "dtype": torch_dtype(self.settings.dtype)}

    def judge(self, library: Path) -> ScoringJudge:
        """Measures damage on the tokens of the scores."""
        return ScoringJudge(
            self.parent,
            self.open_library(library),
            self.score_ids,
            self.folder / f"judged-{library.name}",
            **self._computing,
        )

    def rounds(
        self, key: str, problem: Problem, judge: Judge, library: Path
    ) -> list[dict[str, Any]]:
        """Figures of every round, and the KL of its child on the test split."""

        def search() -> list[dict[str, Any]]:
            return [
                done.as_dict() | {"test_kl": self.kl(done.solution.spec, library)}
                for done in refine(problem, judge, rounds=4)
            ]

        found: list[dict[str, Any]] = self.once(key, search)
        return found

    def kl(self, spec: ArchitectureSpec, library: Path) -> float:
        """KL to the parent of a child on the test split, nats a token."""
        return float(self.quality(self.child(spec, library))["kl"])

    def problem(
        self, speedup: float, scores: ScoreTable, *, space: SearchSpace | None = None,
        metric: str = "kl",
    ) -> Problem:  # fmt: skip
        """Least damage at a multiple of the parent's predicted throughput."""
        parent = self.costs.best_cost(ArchitectureSpec.identity(self.config))
        assert parent is not None, "the parent is loaded, so it fits"
        limits = Limits(tokens_per_second_per_gpu=parent.tokens_per_second_per_gpu * speedup)
        space = space or self.space
        costs = cost_table(self.config, space, self.target, self.scenario)
        return formulate(
            self.config,
            space,
            scores,
            [Workload.on_device(costs, limits)],
            metric=metric,
        )

    def child(self, spec: ArchitectureSpec, library: Path) -> Path:
        """Checkpoint folder of a child, in the precision of the lab."""
        key = value_hash([[asdict(block) for block in spec.blocks], library.name])
        folder = self.folder / "children" / key
        if not folder.exists():
            build_child(self.parent, library, spec, folder, dtype=self.settings.dtype)
        return folder

    def distilled(
        self, child: Path, tokens: int, losses: tuple[str, ...] = ("cosine", "kl")
    ) -> Path:
        """The child after global distillation."""
        folder = child.with_name(f"{child.name}-{'+'.join(losses)}-{tokens}")
        if not folder.exists():
            source, tokenizer = self.settings.data, load_tokenizer(self.parent)
            length = self.settings.length
            documents = load_documents(source, "train")
            distill(
                self.parent,
                child,
                folder,
                TokenStream(documents, tokenizer, length=length, seed=1),
                sample_tokens(
                    load_documents(source, "validation"), tokenizer, length=length, tokens=4096
                ),
                DistillSettings(
                    tokens=tokens,
                    losses=losses,
                    batch_tokens=self.settings.gkd_batch_tokens,
                    learning_rate=(
                        self.settings.long_gkd_learning_rate
                        if tokens == self.settings.long_gkd_tokens
                        else self.settings.gkd_learning_rate
                    ),
                    dtype=self.settings.dtype,
                    held_out_every=256,
                    checkpoint_every=256,
                ),
                out_dtype=self.settings.dtype,
                device=self.settings.device,
                progress=Progress(f"distill {folder.name}"),
            )
        return folder

    def quality(self, child: Path) -> dict[str, Any]:
        """Held-out quality on the test split."""

        def measure() -> dict[str, Any]:
            return measure_quality(self.model, self._load(child), self.test_ids).as_dict()

        found: dict[str, Any] = self.once(f"quality {child.name}", measure)
        return found

    def speedup(self, child: Path) -> float:
        """Measured throughput of a child over the parent's, each at its best predicted batch."""

        def measure() -> float:
            specs = {
                self.parent: ArchitectureSpec.identity(self.config),
                child: ArchitectureSpec.from_file(child / "architecture.yaml"),
            }
            best = {folder: self.costs.best_cost(spec) for folder, spec in specs.items()}
            of_parent, of_child = measure_checkpoints(
                [(folder, cost.point.batch) for folder, cost in best.items() if cost is not None],
                self.scenario,
                dtype=self.settings.dtype,
                device=self.device.torch_device,
                iterations=self.settings.iterations,
                clock=self.device.clock,
                progress=Progress("throughput"),
            )
            return of_child.tokens_per_second / of_parent.tokens_per_second

        return float(self.once(f"speedup {child.name}", measure))

    def paired(self, asked: float, choose: Choose, library: Path) -> Paired | None:
        """The child of a way to choose that measures a speed-up, or comes nearest to it."""
        return pair(asked, choose, lambda spec: self.speedup(self.child(spec, library)))
