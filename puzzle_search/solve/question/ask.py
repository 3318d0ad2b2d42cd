"""The question as people ask it: a model, a GPU and workloads, by name."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from puzzle_search.arch import ArchitectureSpec
from puzzle_search.choices import Backend, Goal
from puzzle_search.cost import Scenario, ScenarioCost, Target
from puzzle_search.cost.serving import ServingOptions
from puzzle_search.cost.simulation import Load, Simulated, simulate
from puzzle_search.errors import InputError
from puzzle_search.solve.answers.certainty import certainty
from puzzle_search.solve.answers.pool import diverse
from puzzle_search.solve.answers.ruin import ruin
from puzzle_search.solve.answers.solver import solve
from puzzle_search.solve.problem.builder import formulate
from puzzle_search.solve.problem.limits import ChildLimits, Limits
from puzzle_search.solve.problem.problem import Problem, Workload
from puzzle_search.solve.problem.score_table import ScoreTable
from puzzle_search.solve.question.answer import Answer
from puzzle_search.solve.question.device import find_target
from puzzle_search.solve.question.inputs import SearchInputs
from puzzle_search.solve.question.targets import cost_table, parse_tp
from puzzle_search.solve.search.search import DEFAULT_BACKEND
from puzzle_search.solve.search.solution import Solution


@dataclass(frozen=True, kw_only=True)
class Question:
    """What is asked of a search.

    Attributes:
        model: shipped example, a folder with ``config.json``, ``space.yaml``, ``scores.csv``, or a
            run directory.
        gpu: a GPU with a cost model, a profile folder, or a run directory.
        scenarios: input and output lengths such as ``128/1024``, each with its limits.
        child: limits of the child itself.
        engine: serving engine whose constants to use; by default the cost model's first.
        dtype: serving precision; by default the parent's own, or the smallest from 8 bits up.
        tp: ``1``, ``1,2,4`` or ``any``; all scenarios are served at one degree.
        serving: how requests are served, where not as the engine does by default.
        scores: another score table than the model's own.
        space: another search space than the model's own.
        metric: metric of the score table, or a weighted sum of them.
        goal: what the answer has the least of; of throughput the most.
        margin: by which predictions keep away from limits; 0.05 is 5%.
        certainty: how often to draw the scores within their standard errors and solve again, to
            say what of the answer holds; 0 is not at all.
    """

    model: str = "llama-3.1-70b"
    gpu: str = "h100"
    scenarios: Sequence[tuple[str, Limits]] = (("128/1024", Limits()),)
    child: ChildLimits = field(default_factory=ChildLimits)
    engine: str | None = None
    dtype: str | None = None
    tp: str = "1"
    serving: ServingOptions = field(default_factory=ServingOptions)
    scores: str | None = None
    space: str | None = None
    metric: str = "kl"
    goal: Goal = "score"
    margin: float = 0.0
    certainty: int = 0

    def as_dict(self) -> dict[str, Any]:
        """The question as results keep it."""
        names = ("model", "gpu", "engine", "dtype", "tp", "metric", "goal", "margin")
        shown: dict[str, Any] = {name: getattr(self, name) for name in names}
        shown["scenarios"] = [
            {"scenario": scenario, "limits": limits.asked()} for scenario, limits in self.scenarios
        ]
        return shown | {"serving": self.serving.asked(), "child": self.child.asked()}


@dataclass(frozen=True, kw_only=True)
class PosedQuestion:
    """A question made into a problem."""

    question: Question
    inputs: SearchInputs
    problem: Problem

    def at_exact_batch(
        self, solution: Solution, *, max_seconds: float, backend: Backend
    ) -> Solution:
        """The solution at the best of all batch sizes around its own.

        Where the goal depends on the batch size, the problem is solved again with these.
        """
        workloads = []
        for workload, index in zip(solution.problem.workloads, solution.points, strict=True):
            table = workload.table
            point = table.points[index]
            known = {one.batch for one in table.points if one.tp == point.tp}
            batches = [b for b in table.target.serving.between(point.batch) if b not in known]
            if batches and table.target.measured is None:
                more = cost_table(
                    self.inputs.config, self.inputs.space, table.target, table.scenario,
                    (point.tp,), batches,
                )  # fmt: skip
                workload = replace(workload, table=table.joined(more))
            workloads.append(workload)
        if all(new is old for new, old in zip(workloads, solution.problem.workloads, strict=True)):
            return solution
        problem = replace(solution.problem, workloads=tuple(workloads))
        if problem.goal.scenario is not None:
            return solve(
                _formulate(self.question, self.inputs, workloads, self.inputs.scores),
                max_seconds=max_seconds,
                backend=backend,
            )
        points = problem.operating_points(solution.selection)
        assert points is not None
        return replace(solution, problem=problem, points=points)

    def answer(self, solution: Solution) -> Answer:
        """A solution of the problem as an answer."""
        origins = {"asked": self.question.as_dict(), "inputs": self.inputs.hashes}
        return Answer(
            solution=solution,
            config=self.inputs.config,
            origins=origins,
            simulated=tuple(self._simulated(solution)),
        )

    def _simulated(self, solution: Solution) -> Iterator[Simulated | None]:
        """What clients see in each scenario for which their number or their rate was asked."""
        for workload, cost in zip(solution.problem.workloads, solution.costs, strict=True):
            rate = workload.limits.requests_per_second
            clients = workload.table.target.serving.concurrency
            if rate is None and clients is None:
                yield None
                continue
            load = Load(
                requests_per_second=rate and rate / (1 + workload.margin),
                concurrency=clients if rate is None else None,
            )
            yield simulate(
                solution.spec, workload.table.target, cost.scenario, load,
                batch=_places(solution.spec, workload, cost), tp=cost.point.tp,
            )  # fmt: skip

    def judged(self, answer: Answer, *, max_seconds: float, backend: Backend) -> Answer:
        """An answer with whether it wrecks the model.

        Where that is asked, also what of it holds within the scores' standard errors.
        """
        if self.question.metric == "kl":
            answer = replace(answer, ruin=ruin(answer.solution))
        if not self.question.certainty:
            return answer
        judgement = certainty(
            answer.solution,
            self.inputs.config,
            self.inputs.scores,
            partial(_formulate, self.question, self.inputs, self.problem.workloads),
            draws=self.question.certainty,
            max_seconds=max_seconds,
            backend=backend,
        )
        return replace(answer, certainty=judgement)


def _places(spec: ArchitectureSpec, workload: Workload, cost: ScenarioCost) -> int:
    """Sequences that the engine may run at once: where requests come at a rate, all that fit."""
    table = workload.table
    if workload.limits.requests_per_second is None:
        return cost.point.batch
    fits = table.of(spec).fits
    fitting = (point for point, fit in zip(table.points, fits, strict=True) if fit)
    return max(point.batch for point in fitting if point.tp == cost.point.tp)


def pose(question: Question) -> PosedQuestion:
    """Look up everything that a question names.

    Raises:
        InputError: something named is not there or not valid.
        InfeasibleError: a layer has no replacement left.
    """
    inputs = SearchInputs.find(question.model, scores=question.scores, space=question.space)
    target = find_target(
        question.gpu,
        inputs.config,
        engine=question.engine,
        dtype=question.dtype,
        tp=parse_tp(question.tp),
        serving=question.serving,
    )
    return pose_on(question, inputs, target)


def pose_on(question: Question, inputs: SearchInputs, target: Target) -> PosedQuestion:
    """Make a question into a problem, its model and device being at hand.

    Raises:
        InputError: a limit or scenario is not valid for them.
        InfeasibleError: a layer has no replacement left.
    """
    scenarios = [(Scenario.parse(text), limits) for text, limits in question.scenarios]
    for scenario, _ in scenarios:
        longest = inputs.config.max_position_embeddings
        if scenario.tokens > longest:
            raise InputError(
                f"scenario {scenario} is longer than the {longest:,} positions of "
                f"{inputs.config.name}",
                remedy="ask for a shorter one, or raise max_position_embeddings in config.json",
            )
    tp = parse_tp(question.tp)
    parent = ArchitectureSpec.identity(inputs.config)
    workloads = []
    for scenario, limits in scenarios:
        table = cost_table(inputs.config, inputs.space, target, scenario, tp)
        asked = limits.against(table, parent)
        workloads.append(Workload.on_device(table, asked, margin=question.margin))
    problem = _formulate(question, inputs, workloads, inputs.scores)
    resolved = replace(question, engine=target.engine, dtype=target.dtype.name)
    return PosedQuestion(question=resolved, inputs=inputs, problem=problem)


def _formulate(
    question: Question, inputs: SearchInputs, workloads: Sequence[Workload], scores: ScoreTable
) -> Problem:
    return formulate(
        inputs.config,
        inputs.space,
        scores,
        workloads,
        question.child,
        metric=question.metric,
        goal=question.goal,
    )


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
    return ask_for_several(question, 1, 1, max_seconds=max_seconds, backend=backend)[0]


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
        found = [solve(asked.problem, max_seconds=max_seconds, backend=backend)]
    else:
        found = diverse(
            asked.problem,
            solutions=solutions,
            min_distance=min_distance,
            max_seconds=max_seconds,
            backend=backend,
        )
    exact = (
        asked.at_exact_batch(solution, max_seconds=max_seconds, backend=backend)
        for solution in found
    )
    best, *others = (asked.answer(solution) for solution in exact)
    return [asked.judged(best, max_seconds=max_seconds, backend=backend), *others]
