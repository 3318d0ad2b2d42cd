"""What a run directory has to show: its child, what it was chosen by, and what was measured."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from puzzle_search.arch import ArchitectureSpec, ParentConfig, SearchSpace
from puzzle_search.cost import OperatingPoint, Profile, Target
from puzzle_search.cost.scaled import ScaledLatency
from puzzle_search.errors import InputError
from puzzle_search.files import read_json
from puzzle_search.solve import ChildLimits, Limits, Workload, formulate
from puzzle_search.solve.problem.score_table import ScoreTable
from puzzle_search.solve.question.ask import Asked, Question
from puzzle_search.solve.question.inputs import SearchInputs
from puzzle_search.solve.question.setting import Setting, solved_for
from puzzle_search.solve.question.targets import cost_table, profile_target

RECIPE, SPACE = "recipe.yaml", "space.yaml"  # what the run was begun with
_METRIC = "kl"


@dataclass(frozen=True, kw_only=True)
class RunFolder:
    """A run directory that has come as far as its child.

    Attributes:
        folder: where it is.
        spec: the child.
        profile: of the parent's subblocks, measured in the run.
        scores: of the parent's replacements, measured in the run.
    """

    folder: Path
    spec: ArchitectureSpec
    profile: Profile
    scores: ScoreTable

    @classmethod
    def open(cls, folder: Path) -> RunFolder:
        """Read what a run left.

        Raises:
            InputError: it has no child yet, or a file is damaged.
        """
        spec = folder / "solve" / "architecture.yaml"
        if not spec.is_file():
            raise InputError(
                f"{folder} has no {spec.relative_to(folder)} yet",
                remedy="end the run first: 'puzzle-search run' goes on where it was",
            )
        return cls(
            folder=folder,
            spec=ArchitectureSpec.from_file(spec),
            profile=Profile.from_folder(folder / "profile"),
            scores=ScoreTable.from_file(folder / "score" / "scores.csv"),
        )

    def setting(self) -> Setting:
        """The run's own parent, scores, device and workload.

        Times are those of the profile by the scalar that makes the parent's throughput right: as
        measured in turn with the child where the run got there, otherwise before it was chosen.
        """
        solved = solved_for(self.spec)
        if not solved:
            raise InputError(
                f"{self.folder}: the child does not say what it was solved for",
                remedy=f"remove {self.folder / 'solve'} and run again",
            )
        base = Setting(
            config=self.profile.config,
            scores=self.scores,
            metric=_METRIC,
            target=profile_target(self.profile),
            scenarios=tuple(dict.fromkeys(scenario for scenario, *_ in solved)),
            tp_degrees=(1,),
            recorded={scenario: point for scenario, point, _ in solved},
        )
        return replace(base, target=self._scaled(base))

    def _scaled(self, base: Setting) -> Target:
        bench = self._read("bench", "bench.json")
        if bench is None:
            scalar = float(self._read_or_fail("baseline", "baseline.json")["engine_scalar"])
        else:
            identity = ArchitectureSpec.identity(base.config)
            measured = bench["parent"]
            point = OperatingPoint(batch=measured["batch"], tp=1)
            table = base.cost_table(base.scenarios[0], [identity], also=[point])
            predicted = table.cost(identity, table.points.index(point))
            scalar = predicted.tokens_per_second_per_gpu / measured["tokens_per_second"]
        return replace(base.target, latency=ScaledLatency(base=base.target.latency, scalar=scalar))

    def asked(self) -> Asked:
        """What the run asked of the solver without its speed-up, for the frontier of its child.

        The search space is that of the replacements that were scored.
        """
        setting, config = self.setting(), self.profile.config
        space = _scored_space(self.scores, config)
        linear = self.spec.solution.get("asked", {}).get("solve", {}).get("limits", [])
        limits = ChildLimits(linear=tuple(linear))
        workloads = [
            Workload.on_device(cost_table(config, space, setting.target, scenario), Limits())
            for scenario in setting.scenarios
        ]
        return Asked(
            question=Question(
                model=config.name,
                gpu=str(self.folder / "profile"),
                scenarios=[(str(scenario), Limits()) for scenario in setting.scenarios],
                child=limits,
                engine=setting.target.engine,
                dtype=setting.target.dtype.name,
                scores=str(self.folder / "score" / "scores.csv"),
            ),
            inputs=SearchInputs(config=config, space=space, scores=self.scores, hashes={}),
            problem=formulate(config, space, self.scores, workloads, limits),
        )

    def measured(self) -> dict[str, Any]:
        """Predicted against measured, quality, rounds and serving; None where not done yet."""
        report = self._read("report.json")
        bench = self._read("bench", "bench.json")
        return {
            "rows": None if report is None else report["rows"],
            "notes": [] if report is None else report["notes"],
            "quality": self._read("evaluate", "quality.json"),
            "rounds": self.spec.solution.get("rounds"),
            "serving": None
            if bench is None
            else {
                who: [
                    figures["batch"],
                    1,
                    figures["tokens_per_second_per_user"],
                    figures["tokens_per_second"],
                    figures["ttft_ms"],
                ]
                for who, figures in bench.items()
            },
        }

    def _read(self, *parts: str) -> dict[str, Any] | None:
        file = self.folder.joinpath(*parts)
        return self._read_or_fail(*parts) if file.is_file() else None

    def _read_or_fail(self, *parts: str) -> dict[str, Any]:
        file = self.folder.joinpath(*parts)
        return read_json(file, remedy=f"remove {file.parent} and run again")


def _scored_space(scores: ScoreTable, config: ParentConfig) -> SearchSpace:
    """Every variant that was scored in a layer, and every block over several layers."""
    attention = [[config.attention] for _ in range(config.num_layers)]
    ffn = [[config.ffn] for _ in range(config.num_layers)]
    runs = []
    for row in scores.rows:
        if row.first_layer < row.last_layer:
            runs.append((row.first_layer, row.last_layer, row.attention, row.ffn))
        else:
            attention[row.first_layer].append(row.attention or config.attention)
            ffn[row.first_layer].append(row.ffn or config.ffn)
    return SearchSpace(
        attention=tuple(tuple(dict.fromkeys(names)) for names in attention),
        ffn=tuple(tuple(dict.fromkeys(names)) for names in ffn),
        runs=tuple(dict.fromkeys(runs)),
    )
