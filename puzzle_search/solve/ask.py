"""The question as people ask it: a model, a GPU and a workload, by name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from puzzle_search.arch import ArchitectureSpec, ParentConfig, SearchSpace
from puzzle_search.cost import (
    CostTable,
    OperatingPoint,
    Profile,
    Scenario,
    ScenarioCost,
    Target,
    build_cost_table,
    parse_dtype,
)
from puzzle_search.cost.analytic import AnalyticLatency
from puzzle_search.cost.hardware import CostModel, find_cost_model
from puzzle_search.errors import InputError
from puzzle_search.files import file_hash
from puzzle_search.resources import resource
from puzzle_search.solve.exact import Backend
from puzzle_search.solve.problem import Limits, Problem
from puzzle_search.solve.score_table import ScoreTable
from puzzle_search.solve.search import DEFAULT_BACKEND, Solution, solve

_ALL_TP = (1, 2, 4, 8)
_LARGEST_BATCH = 1024
_BATCH_STEPS = 74  # each about 10% more than the last


@dataclass(frozen=True, kw_only=True)
class SearchInputs:
    """A parent with its search space and scores, as files in one folder.

    The folder holds ``config.json``, ``space.yaml`` and ``scores.csv`` with its sidecar.
    """

    config: ParentConfig
    space: SearchSpace
    scores: ScoreTable
    hashes: dict[str, str]

    @classmethod
    def find(cls, model: str, *, scores: str | None = None) -> SearchInputs:
        """Open a shipped example by name, or a folder.

        Raises:
            InputError: there is no such example or folder, or a file in it is wrong.
        """
        shipped = resource("examples", model.lower())
        folder = Path(model) if Path(model).is_dir() else shipped
        if not folder.is_dir():
            known = sorted(p.parent.name for p in resource("examples").glob("*/scores.csv"))
            raise InputError(
                f"model {model!r} is neither a shipped example nor a folder",
                remedy=f"use {', '.join(known)}, or a folder that holds config.json, space.yaml "
                "and scores.csv",
            )
        score_file = Path(scores) if scores else folder / "scores.csv"
        config = ParentConfig.from_file(folder / "config.json", name=folder.name)
        return cls(
            config=config,
            space=SearchSpace.from_file(folder / "space.yaml", config),
            scores=ScoreTable.from_file(score_file),
            hashes={"scores": file_hash(score_file), "space": file_hash(folder / "space.yaml")},
        )


def find_target(gpu: str, config: ParentConfig, *, engine: str, dtype: str) -> Target:
    """The target of a GPU's name (its cost model) or of a profile folder.

    Raises:
        InputError: the GPU, engine or dtype is not known there.
    """
    if (Path(gpu) / "profile.yaml").exists():
        profile = Profile.from_folder(gpu)
        return profile_target(profile)
    model = CostModel.from_file(find_cost_model(gpu))
    return Target(
        gpu=model.gpu,
        latency=AnalyticLatency(config, model, engine, dtype),
        memory_limit_bytes=model.memory_limit_bytes,
        dtype=parse_dtype(dtype),
        batches=tuple(sorted({round(b) for b in np.geomspace(1, _LARGEST_BATCH, _BATCH_STEPS)})),
        tp_degrees=_ALL_TP,
    )


def profile_target(profile: Profile) -> Target:
    """The device that a profile was measured on."""
    return Target(
        gpu=str(profile.sidecar["device"]["name"]),
        latency=profile,
        memory_limit_bytes=int(profile.sidecar["memory_limit_bytes"]),
        dtype=parse_dtype(str(profile.sidecar["dtype"])),
        batches=tuple(profile.batches),
        tp_degrees=tuple(profile.tp_degrees),
    )


def parse_tp(text: str) -> tuple[int, ...]:
    """Read ``1``, ``1,2,4`` or ``any``.

    Raises:
        InputError: the text has another form.
    """
    if text == "any":
        return _ALL_TP
    parts = text.split(",")
    if not all(part.isdecimal() and int(part) in _ALL_TP for part in parts):
        raise InputError(
            f"tp {text!r} is not a list of degrees", remedy="use any, or some of 1,2,4,8"
        )
    return tuple(sorted({int(part) for part in parts}))


def solve_for_target(
    config: ParentConfig,
    space: SearchSpace,
    scores: ScoreTable,
    target: Target,
    scenario: Scenario,
    limits: Limits,
    *,
    tp: tuple[int, ...] = (1,),
    metric: str = "kl",
    max_seconds: float = 60.0,
    backend: Backend = DEFAULT_BACKEND,
) -> Solution:
    """Find the child of least damage on a target, over all its batch sizes and these TP degrees.

    Raises:
        InputError: the score table or the target lacks a variant, or the target a TP degree.
        InfeasibleError: no architecture keeps the limits.
    """
    table = cost_table(config, space, target, scenario, tp)
    problem = Problem.build(config, space, scores, table, limits, metric=metric)
    return solve(problem, max_seconds=max_seconds, backend=backend)


def cost_table(
    config: ParentConfig,
    space: SearchSpace,
    target: Target,
    scenario: Scenario,
    tp: tuple[int, ...] = (1,),
) -> CostTable:
    """Price the whole search space at every batch size of the target and these TP degrees.

    Raises:
        InputError: the target knows none of the TP degrees, or lacks a variant.
    """
    degrees = [degree for degree in tp if degree in target.tp_degrees]
    if not degrees:
        raise InputError(
            f"{target.gpu} has no costs for TP {', '.join(map(str, tp))}",
            remedy=f"use --tp {','.join(map(str, target.tp_degrees))}",
        )
    return build_cost_table(
        config,
        target,
        scenario,
        [OperatingPoint(batch=batch, tp=degree) for degree in degrees for batch in target.batches],
        attention=space.all_variants("attention"),
        ffn=space.all_variants("ffn"),
    )


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A solution beside its parent."""

    solution: Solution
    parent_cost: ScenarioCost | None
    inputs: SearchInputs

    @property
    def spec(self) -> ArchitectureSpec:
        """The architecture, carrying how it was found."""
        return self.solution.spec_with_solution(**self.inputs.hashes)


def ask(
    *,
    model: str = "llama-3.1-70b",
    gpu: str = "h100",
    limits: Limits,
    scenario: str = "128/1024",
    engine: str = "trtllm",
    dtype: str = "fp8",
    tp: str = "1",
    scores: str | None = None,
    metric: str = "kl",
    max_seconds: float = 60.0,
    backend: Backend = DEFAULT_BACKEND,
) -> Answer:
    """Find the best child of a model for a GPU and workload.

    Args:
        model: shipped example, or a folder with ``config.json``, ``space.yaml``, ``scores.csv``.
        gpu: a GPU with a cost model, or a profile folder.
        limits: what the child must keep to.
        scenario: input and output length, ``128/1024``.
        engine: serving engine whose constants the cost model uses.
        dtype: serving precision.
        tp: ``1``, ``1,2,4`` or ``any``.
        scores: another score table than the model's own.
        metric: metric of the score table.
        max_seconds: time limit of the search.
        backend: solver of the exact step; all give the same answer.

    Raises:
        InputError: something named is not there or not valid.
        InfeasibleError: no architecture keeps the limits.
    """
    inputs = SearchInputs.find(model, scores=scores)
    target = find_target(gpu, inputs.config, engine=engine, dtype=dtype)
    solution = solve_for_target(
        inputs.config,
        inputs.space,
        inputs.scores,
        target,
        Scenario.parse(scenario),
        limits,
        tp=parse_tp(tp),
        metric=metric,
        max_seconds=max_seconds,
        backend=backend,
    )
    parent = solution.problem.cost.best_cost(ArchitectureSpec.identity(inputs.config))
    return Answer(solution=solution, parent_cost=parent, inputs=inputs)
