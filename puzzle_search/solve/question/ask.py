"""The question as people ask it: a model, a GPU and workloads, by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from puzzle_search.choices import Backend, Goal
from puzzle_search.cost import Scenario
from puzzle_search.errors import InputError
from puzzle_search.solve.answers.pool import diverse
from puzzle_search.solve.answers.solver import solve
from puzzle_search.solve.problem.builder import formulate
from puzzle_search.solve.problem.limits import ChildLimits, Limits
from puzzle_search.solve.problem.problem import Problem, Workload
from puzzle_search.solve.question.answer import Answer
from puzzle_search.solve.question.inputs import SearchInputs
from puzzle_search.solve.question.targets import cost_table, find_target, parse_tp
from puzzle_search.solve.search.search import DEFAULT_BACKEND
from puzzle_search.solve.search.solution import Solution


@dataclass(frozen=True, kw_only=True)
class Question:
    """What is asked of a search.

    Attributes:
        model: shipped example, or a folder with ``config.json``, ``space.yaml``, ``scores.csv``.
        gpu: a GPU with a cost model, or a profile folder.
        scenarios: input and output lengths such as ``128/1024``, each with its limits.
        child: limits of the child itself.
        engine: serving engine whose constants to use; by default the cost model's first.
        dtype: serving precision; by default the smallest that the engine has on that GPU.
        tp: ``1``, ``1,2,4`` or ``any``; all scenarios are served at one degree.
        scores: another score table than the model's own.
        metric: metric of the score table, or a weighted sum of them.
        goal: what the answer has the least of; of throughput the most.
        margin: by which predictions keep away from limits; 0.05 is 5%.
    """

    model: str = "llama-3.1-70b"
    gpu: str = "h100"
    scenarios: Sequence[tuple[str, Limits]] = (("128/1024", Limits()),)
    child: ChildLimits = field(default_factory=ChildLimits)
    engine: str | None = None
    dtype: str | None = None
    tp: str = "1"
    scores: str | None = None
    metric: str = "kl"
    goal: Goal = "score"
    margin: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        """The question as results keep it."""
        names = ("model", "gpu", "engine", "dtype", "tp", "metric", "goal", "margin")
        shown: dict[str, Any] = {name: getattr(self, name) for name in names}
        shown["scenarios"] = [
            {"scenario": scenario, "limits": limits.asked()} for scenario, limits in self.scenarios
        ]
        return shown | {"child": self.child.asked()}


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A question made into a problem."""

    question: Question
    inputs: SearchInputs
    problem: Problem

    def answer(self, solution: Solution) -> Answer:
        """A solution of the problem as an answer."""
        origins = {"asked": self.question.as_dict(), "inputs": self.inputs.hashes}
        return Answer(solution=solution, config=self.inputs.config, origins=origins)


def pose(question: Question) -> Asked:
    """Look up everything that a question names.

    Raises:
        InputError: something named is not there or not valid.
        InfeasibleError: a layer has no replacement left.
    """
    inputs = SearchInputs.find(question.model, scores=question.scores)
    scenarios = [(Scenario.parse(text), limits) for text, limits in question.scenarios]
    for scenario, _ in scenarios:
        longest = inputs.config.max_position_embeddings
        if scenario.input_len + scenario.output_len > longest:
            raise InputError(
                f"scenario {scenario} is longer than the {longest:,} positions of "
                f"{inputs.config.name}",
                remedy="ask for a shorter one, or raise max_position_embeddings in config.json",
            )
    tp = parse_tp(question.tp)
    target = find_target(
        question.gpu, inputs.config, engine=question.engine, dtype=question.dtype, tp=tp
    )
    workloads = [
        Workload.on_device(
            cost_table(inputs.config, inputs.space, target, scenario, tp),
            limits,
            margin=question.margin,
        )
        for scenario, limits in scenarios
    ]
    problem = formulate(
        inputs.config,
        inputs.space,
        inputs.scores,
        workloads,
        question.child,
        metric=question.metric,
        goal=question.goal,
    )
    resolved = replace(question, engine=target.engine, dtype=target.dtype.name)
    return Asked(question=resolved, inputs=inputs, problem=problem)


def ask(
    question: Question, *, max_seconds: float = 60.0, backend: Backend = DEFAULT_BACKEND
) -> Answer:
    """Find the best child of a model for a GPU and workloads.

    Args:
        question: what is asked.
        max_seconds: time limit of the search.
        backend: solver of the exact step; all give the same answer.

    Raises:
        InputError: something named is not there or not valid.
        InfeasibleError: no architecture keeps the limits.
    """
    asked = pose(question)
    return asked.answer(solve(asked.problem, max_seconds=max_seconds, backend=backend))


def ask_for_several(
    question: Question,
    solutions: int,
    min_distance: int,
    *,
    max_seconds: float = 60.0,
    backend: Backend = DEFAULT_BACKEND,
) -> list[Answer]:
    """The best child and the next best ones that differ from all before.

    Args:
        question: what is asked.
        solutions: how many answers; fewer are returned where no more exist.
        min_distance: layers in which any two differ, at least.
        max_seconds: time limit of the search.
        backend: solver of the exact step; all give the same answer.

    Raises:
        InputError: something named is not there or not valid.
        InfeasibleError: no architecture keeps the limits.
    """
    asked = pose(question)
    if solutions == 1:
        return [asked.answer(solve(asked.problem, max_seconds=max_seconds, backend=backend))]
    found = diverse(
        asked.problem,
        solutions=solutions,
        min_distance=min_distance,
        max_seconds=max_seconds,
        backend=backend,
    )
    return [asked.answer(solution) for solution in found]
