"""What a run directory can be asked: its parent, profile, scores, child, and what was measured."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from puzzle_search.arch import ArchitectureSpec, ParentConfig
from puzzle_search.cost import OperatingPoint, Profile, Scenario, Target, build_cost_table
from puzzle_search.cost.scaled import ScaledLatency
from puzzle_search.cost.serving import ServingOptions
from puzzle_search.errors import InputError
from puzzle_search.files import damage_told, read_json, read_yaml
from puzzle_search.solve.problem.score_table import ScoreTable
from puzzle_search.solve.question.targets import profile_target

RECIPE, SPACE = "recipe.yaml", "space.yaml"  # what the run was begun with
RECIPE_FORMAT = "puzzle-search.recipe/1"
_JOURNAL = "journal.jsonl"
_DEEPEST = 3  # folders between a run directory and a file of its child


def is_run(folder: Path) -> bool:
    """Whether a folder is a run directory."""
    return (folder / _JOURNAL).is_file() and (folder / "profile").is_dir()


def run_at(path: Path) -> RunFolder | None:
    """The run of a run directory or of the profile in it, None for anything else."""
    folder = path.parent if path.name == "profile" else path
    return RunFolder.open(folder) if is_run(folder) and (folder / RECIPE).is_file() else None


def run_around(path: Path) -> Path | None:
    """The run directory that a file or folder lies in, None where it lies in none."""
    above = list(path.resolve().parents)[:_DEEPEST]
    return next((f for f in above if is_run(f) and (f / RECIPE).is_file()), None)


@dataclass(frozen=True, kw_only=True)
class RunFolder:
    """A run directory, as far as the run has come.

    Attributes:
        folder: where it is.
        recipe: what the run was begun with, defaults among it.
    """

    folder: Path
    recipe: Mapping[str, Any]

    @classmethod
    def open(cls, folder: Path) -> RunFolder:
        """Read what the run was begun with.

        Raises:
            InputError: it is no run directory, or its recipe is damaged or of an older version.
        """
        if not is_run(folder):
            raise InputError(
                f"{folder} is no run directory",
                remedy="name the folder that 'puzzle-search run' worked in, such as runs/NAME",
            )
        if not (folder / RECIPE).is_file():
            raise InputError(
                f"{folder} has no {RECIPE}: an older version began this run",
                remedy=f"puzzle-search run RECIPE --run-dir {folder}: what is done stays done",
            )
        recipe = read_yaml(folder / RECIPE, format=RECIPE_FORMAT)
        if not isinstance(recipe.get("scenario"), str) or not isinstance(recipe.get("solve"), dict):
            raise InputError(
                f"{folder / RECIPE} has no scenario or no solve",
                remedy="run the recipe again: what is done stays done",
            )
        return cls(folder=folder, recipe=recipe)

    @cached_property
    def profile(self) -> Profile:
        """Of the parent's subblocks, measured in the run."""
        self._check_there("profile", "profile.yaml")
        return Profile.from_folder(self.folder / "profile")

    @property
    def config(self) -> ParentConfig:
        """The parent."""
        return self.profile.config

    @property
    def scores_file(self) -> Path:
        """Of the parent's replacements, measured in the run; it may not be there yet."""
        return self.folder / "score" / "scores.csv"

    @cached_property
    def scores(self) -> ScoreTable:
        """The damages in `scores_file`."""
        self._check_there("score", "scores.csv")
        return ScoreTable.from_file(self.scores_file)

    @property
    def space_file(self) -> Path:
        """The search space."""
        return self.folder / SPACE

    @cached_property
    def spec(self) -> ArchitectureSpec:
        """The child that was chosen: by the solver, or by probes among its candidates."""
        probed = self.recipe["solve"].get("candidates", 1) > 1
        stage = "probe" if probed else "solve"
        self._check_there(stage, "architecture.yaml")
        return ArchitectureSpec.from_file(self.folder / stage / "architecture.yaml")

    @property
    def child(self) -> Path:
        """Checkpoint folder of the child, distilled where the recipe asks for it and it is done.

        Raises:
            InputError: none is built yet.
        """
        distilled = self.folder / "distill"
        if self.recipe.get("distill") and (distilled / "done.json").is_file():
            return distilled / "child"
        self._check_there("build", "done.json")
        return self.folder / "build" / "child"

    def target(
        self, *, tp: tuple[int, ...] = (1,), serving: ServingOptions | None = None
    ) -> Target:
        """The device of the run: its profile, by the scalar that makes the parent right.

        Batches are static, as the run served them, where nothing else is asked.
        """
        asked = serving if serving and serving.asked() else ServingOptions(mode="static")
        base = profile_target(self.profile, tp=tp, serving=asked)
        scaled = ScaledLatency(base=base.latency, scalar=self.engine_scalar)
        return replace(base, latency=scaled)

    @cached_property
    def engine_scalar(self) -> float:
        """What makes the parent's predicted throughput the measured one.

        As measured in turn with the child where the run got there, otherwise before it was chosen.
        """
        bench = self._read("bench", "bench.json")
        if bench is None:
            self._check_there("baseline", "baseline.json")
            with self._damage_told():
                return _finite(self._read_or_fail("baseline", "baseline.json")["engine_scalar"])
        with self._damage_told():
            config, measured = self.config, bench["parent"]
            speed, batch = _finite(measured["tokens_per_second"]), int(measured["batch"])
        table = build_cost_table(
            config,
            profile_target(self.profile, serving=ServingOptions(mode="static")),
            Scenario.parse(self.recipe["scenario"]),
            [OperatingPoint(batch=batch, tp=1)],
            attention=config.attentions,
            ffn=[config.ffn],
        )
        predicted = table.cost(ArchitectureSpec.identity(config), 0)
        return float(predicted.tokens_per_second_per_gpu / speed)

    def measured(self) -> dict[str, Any]:
        """Predicted against measured, quality, rounds and serving; None where not done yet."""
        report, bench = self._read("report.json"), self._read("bench", "bench.json")
        with self._damage_told():
            return {
                "rows": None if report is None else report["rows"],
                "notes": [] if report is None else report["notes"],
                "quality": self._read("evaluate", "quality.json"),
                "rounds": self.spec.solution.get("rounds"),
                "serving": None
                if bench is None
                else {
                    who: [
                        int(figures["batch"]),
                        1,
                        *(
                            _finite(figures[key])
                            for key in (
                                "tokens_per_second_per_user",
                                "tokens_per_second",
                                "ttft_ms",
                            )
                        ),
                    ]
                    for who, figures in bench.items()
                },
            }

    def _check_there(self, stage: str, name: str) -> None:
        if not (self.folder / stage / name).is_file():
            raise InputError(
                f"{self.folder} has no {stage}/{name} yet",
                remedy="end the run first: "
                f"puzzle-search run {self.folder / RECIPE} --run-dir {self.folder}",
            )

    def _damage_told(self) -> AbstractContextManager[None]:
        return damage_told(f"a file of {self.folder}", "remove the stage's folder and run again")

    def _read(self, *parts: str) -> dict[str, Any] | None:
        file = self.folder.joinpath(*parts)
        return self._read_or_fail(*parts) if file.is_file() else None

    def _read_or_fail(self, *parts: str) -> dict[str, Any]:
        file = self.folder.joinpath(*parts)
        return read_json(file, remedy=f"remove {file.parent} and run again")


def _finite(figure: Any) -> float:
    if not 0 < figure < math.inf:
        raise ValueError(f"{figure!r} is no positive number")
    return float(figure)
