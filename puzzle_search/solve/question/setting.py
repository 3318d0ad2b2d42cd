"""What specs are held against: parent, scores, device and workloads, as asked or as solved for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

from puzzle_search.arch import (
    ArchitectureSpec,
    BlockChoice,
    ParentConfig,
    mean_kv_values_per_token,
)
from puzzle_search.cost import CostTable, OperatingPoint, Scenario, Target, build_cost_table
from puzzle_search.cost.pricing import covered_points
from puzzle_search.cost.serving import ServingOptions
from puzzle_search.errors import InputError
from puzzle_search.resources import resource
from puzzle_search.solve.problem.score_table import ScoreTable, parse_metric
from puzzle_search.solve.question.children import parent_of_child
from puzzle_search.solve.question.device import find_target
from puzzle_search.solve.question.run_folder import RunFolder, run_at
from puzzle_search.solve.question.targets import parse_tp

_DEFAULT_METRIC = "kl"
_DEFAULT_GPU = "h100"
_DEFAULT_SCENARIO = Scenario(input_len=128, output_len=1024)


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What specs are held against.

    Attributes:
        config: the parent.
        scores: replace-1-block scores of the parent, if there are any.
        metric: of the score table, or a weighted sum of metrics.
        target: device with engine and precision.
        scenarios: workloads.
        tp_degrees: tensor-parallel degrees to choose from.
        recorded: by scenario, the operating point that the spec was solved for; empty where
            anything was asked otherwise than the spec says.
    """

    config: ParentConfig
    scores: ScoreTable | None
    metric: str
    target: Target
    scenarios: tuple[Scenario, ...]
    tp_degrees: tuple[int, ...]
    recorded: dict[Scenario, OperatingPoint]

    @property
    def evidence(self) -> dict[str, str | None]:
        """How scores and costs are known."""
        return {
            "scores": self.scores.evidence if self.scores else None,
            "cost": self.target.latency.evidence,
        }

    def check_fits(self, spec: ArchitectureSpec) -> None:
        """Check that a spec describes children of the parent.

        Raises:
            InputError: it does not.
        """
        try:
            spec.check_fits(self.config)
        except InputError as error:
            raise InputError(
                error.message, remedy=f"name the parent of the spec, {spec.parent!r}, with --model"
            ) from error

    def cost_table(
        self,
        scenario: Scenario,
        specs: Sequence[ArchitectureSpec],
        *,
        also: Iterable[OperatingPoint] = (),
    ) -> CostTable:
        """Prices of all variants of these specs, at every operating point and those also named.

        Raises:
            InputError: the target lacks a variant.
        """
        points = [
            OperatingPoint(batch=batch, tp=tp)
            for tp in self.tp_degrees
            for batch in self.target.batches
        ]
        blocks = [block for spec in specs for block in spec.blocks]
        attention = list(dict.fromkeys([*self.config.attentions, *(b.attention for b in blocks)]))
        ffn = list(dict.fromkeys([self.config.ffn, *(b.ffn for b in blocks)]))
        points = covered_points(self.target, scenario, points, attention=attention, ffn=ffn)
        solved = [self.recorded[scenario]] if scenario in self.recorded else []
        points += [point for point in dict.fromkeys([*solved, *also]) if point not in points]
        return build_cost_table(
            self.config, self.target, scenario, points, attention=attention, ffn=ffn
        )

    def damage(self, block: BlockChoice) -> float | None:
        """Damage of a block in its layer; None where the score table does not say."""
        if self.scores is None or len(block.layers) > 1:
            return None
        try:
            return self.scores.block_damage(
                block.layers[0],
                block.attention,
                block.ffn,
                self.config,
                parse_metric(self.metric),
            )
        except InputError:  # a variant outside the search space that was scored
            return None

    def score(self, spec: ArchitectureSpec) -> float | None:
        """Summed damage of a spec; None where that of a block is not known."""
        damages = [self.damage(block) for block in spec.blocks]
        known = [damage for damage in damages if damage is not None]
        return sum(known) if len(known) == len(damages) else None

    def kv_bytes_per_token(self, spec: ArchitectureSpec) -> int:
        """KV cache of the longest requests over all devices, by their tokens."""
        tokens = max(scenario.tokens for scenario in self.scenarios)
        values = mean_kv_values_per_token(spec, self.config, tokens)
        return values * self.target.dtype.kv_bytes


@dataclass(frozen=True, kw_only=True)
class AskedSetting:
    """What is asked of a setting; what is not is what the specs were solved for.

    Attributes:
        model: shipped example, a run directory, or a folder with ``config.json`` and, if any,
            ``scores.csv``.
        gpu: a GPU with a cost model, a profile folder, or a run directory; ``h100`` if the spec
            does not say.
        scenarios: input and output lengths; 128/1024 if the spec does not say.
        engine: serving engine; the GPU's first if the spec does not say, or for another GPU.
        dtype: serving precision; the parent's own, or the smallest from 8 bits up, likewise.
        tp: ``1``, ``1,2,4`` or ``any``; 1 if the spec does not say.
        serving: how requests are served; for another GPU as the engine does.
        scores: another score table than the model's own.
        home: the run directory or checkpoint folder that the specs are of. A run's parent, scores
            and profile count where no others are asked; a checkpoint tells its parent's shape.
    """

    model: str | None = None
    gpu: str | None = None
    scenarios: tuple[str, ...] = ()
    engine: str | None = None
    dtype: str | None = None
    tp: str | None = None
    serving: ServingOptions = field(default_factory=ServingOptions)
    scores: str | None = None
    home: Path | None = None

    @property
    def of_costs(self) -> bool:
        """Whether anything is asked that changes what a spec costs."""
        named = (self.gpu, self.scenarios, self.engine, self.dtype, self.tp)
        return any(named) or bool(self.serving.asked())

    @property
    def anything(self) -> bool:
        """Whether anything is asked at all."""
        return self.of_costs or any((self.model, self.scores))


def find_setting(
    specs: Sequence[ArchitectureSpec], otherwise: AskedSetting | None = None
) -> Setting:
    """The setting that was asked; what was not asked is what the specs were solved for.

    Args:
        specs: their ``solution`` says what they were solved for; the first one's model, GPU,
            engine, precision and serving count, and the scenarios and TP degrees of all.
        otherwise: what is asked instead.

    Raises:
        InputError: something named is not there, or the scores are of another model.
    """
    otherwise = otherwise or AskedSetting()
    run = None if otherwise.home is None else run_at(otherwise.home)
    gpu = otherwise.gpu or (str(run.folder) if run else None)
    solved = [entry for spec in specs for entry in solved_for(spec)]
    asked = specs[0].solution.get("asked", {})
    if not isinstance(asked, dict):
        raise InputError("the spec's solution.asked is not a mapping", remedy="solve again")
    config, own_scores = _parent(otherwise, run, str(asked.get("model", specs[0].parent)))
    score_file = Path(otherwise.scores) if otherwise.scores else own_scores
    scored = None
    if otherwise.scores is not None or score_file.exists():
        scored = ScoreTable.from_file(score_file)
        scored.check_parent(config, score_file)
    recorded_tp = tuple(sorted({point.tp for _, point, _ in solved})) or (1,)
    degrees = parse_tp(otherwise.tp) if otherwise.tp else recorded_tp
    target = find_target(
        gpu or str(asked.get("gpu") or next((where for *_, where in solved), _DEFAULT_GPU)),
        config,
        engine=otherwise.engine or (_recorded(asked, "engine") if gpu is None else None),
        dtype=otherwise.dtype or (_recorded(asked, "dtype") if gpu is None else None),
        tp=degrees,
        serving=_serving_of(asked)
        if otherwise.gpu is None and not otherwise.serving.asked()
        else otherwise.serving,
    )
    known = tuple(degree for degree in degrees if degree in target.tp_degrees)
    if not known:
        raise InputError(
            f"{target.gpu} has no costs for TP {', '.join(map(str, degrees))}",
            remedy=f"use --tp {','.join(map(str, target.tp_degrees))}",
        )
    parsed = [Scenario.parse(text) for text in otherwise.scenarios]
    return Setting(
        config=config,
        scores=scored,
        metric=str(asked.get("metric", _DEFAULT_METRIC)),
        target=target,
        scenarios=tuple(
            dict.fromkeys(parsed or [scenario for scenario, *_ in solved] or [_DEFAULT_SCENARIO])
        ),
        tp_degrees=known,
        recorded={} if otherwise.of_costs else {where: point for where, point, _ in solved},
    )


def _serving_of(asked: dict[str, object]) -> ServingOptions:
    """How the spec was solved to be served."""
    recorded = asked.get("serving") or {}
    known = {one.name for one in fields(ServingOptions)}
    if not isinstance(recorded, dict) or not recorded.keys() <= known:
        raise InputError("the spec's solution.asked.serving is not known", remedy="solve again")
    return ServingOptions(**recorded)


def _recorded(asked: dict[str, object], key: str) -> str | None:
    value = asked.get(key)
    return None if value is None else str(value)


def _parent(
    otherwise: AskedSetting, run: RunFolder | None, solved_for: str
) -> tuple[ParentConfig, Path]:
    """The parent, and the score table that it may have."""
    named = run_at(Path(otherwise.model)) if otherwise.model else run or run_at(Path(solved_for))
    if named is not None:
        return named.config, named.scores_file
    home = otherwise.home
    if otherwise.model is None and home is not None and not _has_config(_folder_of(solved_for)):
        return parent_of_child(home), home / "scores.csv"
    folder = _model_folder(otherwise.model or solved_for)
    return ParentConfig.from_file(folder), folder / "scores.csv"


def _folder_of(model: str) -> Path:
    return Path(model) if Path(model).is_dir() else resource("examples", model.lower())


def _has_config(folder: Path) -> bool:
    return (folder / "config.json").is_file()


def _model_folder(model: str) -> Path:
    folder = _folder_of(model)
    if not _has_config(folder):
        known = sorted(path.parent.name for path in resource("examples").glob("*/config.json"))
        raise InputError(
            f"model {model!r} is neither a shipped example nor a folder with config.json",
            remedy=f"give --model: {', '.join(known)}, or a folder that holds config.json",
        )
    return folder


def solved_for(spec: ArchitectureSpec) -> list[tuple[Scenario, OperatingPoint, str]]:
    """Scenario, operating point and GPU of each predicted cost in the spec."""
    found = []
    entries = spec.solution.get("scenarios", [])
    for entry in entries if isinstance(entries, list) else [entries]:
        sizes = [
            entry.get(key) if isinstance(entry, dict) else None
            for key in ("input_len", "output_len", "batch", "tp")
        ]
        if any(type(size) is not int or size < 1 for size in sizes):
            raise InputError(
                f"the spec's solution.scenarios lacks lengths, batch or tp: {entry!r:.80}",
                remedy="solve again, or remove the solution from the spec",
            )
        input_len, output_len, batch, tp = (int(size) for size in sizes if size is not None)
        scenario = Scenario(input_len=input_len, output_len=output_len)
        point = OperatingPoint(batch=batch, tp=tp)
        found.append((scenario, point, str(entry.get("gpu", _DEFAULT_GPU))))
    return found
