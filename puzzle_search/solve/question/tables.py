"""Search over tables that were measured elsewhere: no cost model in between."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from puzzle_search.arch import ArchitectureSpec, Gqa, Mlp, Moe, parse_variant
from puzzle_search.choices import TableGoal
from puzzle_search.cost.block_costs import BlockCost, BlockCosts
from puzzle_search.errors import InfeasibleError, InputError
from puzzle_search.files import file_hash
from puzzle_search.solve.answers.prices import prices
from puzzle_search.solve.problem.builder import finite_damage
from puzzle_search.solve.problem.items import Items
from puzzle_search.solve.problem.limits import check_finite, check_positive
from puzzle_search.solve.problem.linear_limit import Facts, parse_linear_limit
from puzzle_search.solve.problem.measures import Bound, Measure, item_measure
from puzzle_search.solve.problem.problem import Problem
from puzzle_search.solve.problem.score_table import ScoreTable, parse_metric
from puzzle_search.solve.search.solution import Solution

_GOALS: dict[TableGoal, str] = {
    "score": "score",
    "latency": "runtime_us",
    "memory": "memory_bytes",
    "parameters": "parameters",
}


@dataclass(frozen=True, kw_only=True)
class TableLimits:
    """What an answer must keep to; None is no limit.

    Attributes:
        memory_bytes: of all blocks and what stands outside them, at most.
        runtime_us: likewise, of the batch and sequence length of the table.
        parameters: of the whole child, at most.
        score: summed damage, at most.
        linear: conditions such as ``sum(attention == "no_op") <= 20``.
        frozen: layers that stay as they are in the parent.
    """

    memory_bytes: float | None = None
    runtime_us: float | None = None
    parameters: float | None = None
    score: float | None = None
    linear: tuple[str, ...] = ()
    frozen: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        check_positive({n: getattr(self, n) for n in ("memory_bytes", "runtime_us", "parameters")})
        check_finite("score", self.score)


@dataclass(frozen=True, kw_only=True)
class TableProblem:
    """A problem made of a folder of tables.

    Attributes:
        problem: to be solved.
        costs: the block costs.
        measures: by name, what each answer is told of: damage, memory, runtime, parameters.
        hashes: of the tables.
    """

    problem: Problem
    costs: BlockCosts
    measures: Mapping[str, Measure]
    hashes: Mapping[str, str] = field(hash=False)

    def usage(self, solution: Solution) -> dict[str, float | None]:
        """What an answer takes, with what stands outside the blocks."""
        values = {
            name: float(measure.of(self.problem.items, solution.selection)[0])
            for name, measure in self.measures.items()
        }
        runtime_us = values.get("runtime_us")
        return {
            "memory_bytes": values["memory_bytes"],
            "memory_mib": values["memory_bytes"] / 2**20,
            "runtime_us": runtime_us,
            "runtime_ms": None if runtime_us is None else runtime_us / 1e3,
            "params": values["parameters"],
        }

    def as_dict(self, solution: Solution) -> dict[str, Any]:
        """An answer as ``solve-tables --json`` prints it."""
        spec = solution.spec
        return {
            **solution.proof(),
            "architecture": {
                "parent": spec.parent,
                "blocks": [block.as_dict() for block in spec.blocks],
            },
            "usage": self.usage(solution),
            "prices": [price.as_dict() for price in prices(solution)],
            "evidence": {"scores": self.problem.score_evidence, "cost": self.costs.evidence},
        }

    def spec(self, solution: Solution) -> ArchitectureSpec:
        """The architecture of an answer, carrying how it was found."""
        found = {k: v for k, v in self.as_dict(solution).items() if k != "architecture"}
        return replace(solution.spec, solution=found | {"inputs": dict(self.hashes)})


def table_problem(
    folder: str | Path, limits: TableLimits, *, metric: str = "kl", goal: TableGoal = "score"
) -> TableProblem:
    """Read a folder such as ``puzzle-search import`` writes, and pose the problem.

    Args:
        folder: holds ``block_costs.csv`` and ``scores.csv`` with their sidecars.
        limits: what an answer must keep to.
        metric: of the score table, or a weighted sum of metrics.
        goal: ``score``, or what to have the least of: ``latency``, ``memory``, ``parameters``.

    Raises:
        InputError: a table is missing or wrong, they are of two parents, a block has costs but no
            score, or a limit is on runtime where the table has none.
        InfeasibleError: freezing leaves a layer without a block.
    """
    cost_file, score_file = Path(folder) / "block_costs.csv", Path(folder) / "scores.csv"
    costs, scores = BlockCosts.from_file(cost_file), ScoreTable.from_file(score_file)
    if costs.model not in (None, scores.sidecar["parent"]):
        raise InputError(
            f"{score_file} is of {scores.sidecar['parent']}, {cost_file} of {costs.model}",
            remedy="put scores and costs of one and the same parent into the folder",
        )
    if goal not in _GOALS:
        raise InputError(
            f"goal {goal!r} cannot be told from tables", remedy=f"use one of {', '.join(_GOALS)}"
        )
    timed = limits.runtime_us is not None or goal == "latency"
    if timed and not costs.has_runtime:
        raise InputError(
            f"{cost_file} has no runtimes, which the question asks for",
            remedy="limit memory or parameters instead, or import a table with runtimes",
        )
    rows = sorted(_offered(costs, limits.frozen), key=lambda row: (row.first_layer, row.last_layer))
    attention = tuple(dict.fromkeys(row.attention for row in rows))
    ffn = tuple(dict.fromkeys(row.ffn for row in rows))
    items = Items(
        num_layers=costs.num_layers,
        first=np.array([row.first_layer for row in rows], dtype=np.intp),
        last=np.array([row.last_layer for row in rows], dtype=np.intp),
        attention=np.array([attention.index(row.attention) for row in rows], dtype=np.intp),
        ffn=np.array([ffn.index(row.ffn) for row in rows], dtype=np.intp),
    )
    if (layer := items.uncovered_layer()) is not None:
        raise InfeasibleError(
            f"layer {layer} has no block left", remedy="drop --freeze, or complete the tables"
        )
    rows = [row for row, usable in zip(rows, items.usable(), strict=True) if usable]
    items = items.kept(items.usable())
    weights = parse_metric(metric)
    damage = finite_damage([_damage(scores, row, weights, score_file) for row in rows])
    outside = costs.outside
    told: dict[str, tuple[list[float], float]] = {
        "memory_bytes": ([float(r.memory_bytes) for r in rows], outside.memory_bytes),
        "parameters": ([float(r.parameters) for r in rows], outside.parameters),
    }
    if costs.has_runtime:
        told["runtime_us"] = ([r.runtime_us or 0.0 for r in rows], outside.runtime_us)
    measures = {"score": item_measure("score", damage, attention, ffn)} | {
        name: item_measure(name, np.array(amounts), attention, ffn, beyond)
        for name, (amounts, beyond) in told.items()
    }
    for name, (amounts, beyond) in told.items():
        if not np.isfinite(sum(amounts) + beyond):
            raise InputError(
                f"{cost_file}: {name} adds up to more than a number holds",
                remedy="correct the largest rows",
            )
    bounds = [
        Bound(limit=name, measure=measures[name], at_most=at_most)
        for name in ("memory_bytes", "runtime_us", "parameters", "score")
        if (at_most := getattr(limits, name)) is not None
    ]
    facts = [_facts(row) for row in rows] if limits.linear else []
    for text in limits.linear:
        for limit in parse_linear_limit(text, facts, costs.num_layers):
            measure = item_measure("linear", limit.amounts, attention, ffn)
            bound = Bound(
                limit=limit.text, measure=measure, at_most=limit.at_most, turned=limit.turned
            )
            bounds.append(bound)
    problem = Problem(
        parent=str(scores.sidecar["parent"]),
        items=items,
        attention=attention,
        ffn=ffn,
        damage=damage,
        goal=measures[_GOALS[goal]],
        workloads=(),
        bounds=tuple(bounds),
        score_evidence=scores.evidence,
    )
    hashes = {"block_costs": file_hash(cost_file), "scores": file_hash(score_file)}
    return TableProblem(problem=problem, costs=costs, measures=measures, hashes=hashes)


def _offered(costs: BlockCosts, frozen: frozenset[int]) -> list[BlockCost]:
    """Rows of blocks that leave frozen layers as they are."""
    if not frozen:
        return list(costs.rows)
    if costs.parent is None or not frozen <= set(range(costs.num_layers)):
        raise InputError(
            "layers cannot be frozen: the table does not know the parent's own block of all layers",
            remedy=f"name layers from 0 to {costs.num_layers - 1}, and parent in block_costs.yaml",
        )
    return [
        row
        for row in costs.rows
        if (row.attention, row.ffn) == costs.parent
        or not frozen & set(range(row.first_layer, row.last_layer + 1))
    ]


def _damage(scores: ScoreTable, row: BlockCost, weights: Mapping[str, float], file: Path) -> float:
    key = (row.first_layer, row.last_layer, row.attention, row.ffn)
    try:
        return scores.run_damage(key, weights)
    except InputError as error:
        raise InputError(f"{file}: {error.message}", remedy=error.remedy) from error


def _facts(row: BlockCost) -> Facts:
    """What linear limits may speak of."""
    attention, ffn = parse_variant("attention", row.attention), parse_variant("ffn", row.ffn)
    return {
        "attention": row.attention,
        "ffn": row.ffn,
        "layer": row.first_layer,
        "kv_heads": attention.kv_heads if isinstance(attention, Gqa) else 0,
        "ffn_width": ffn.intermediate_size if isinstance(ffn, Mlp) else 0,
        "experts": ffn.experts if isinstance(ffn, Moe) else 0,
        "parameters": row.parameters,
    }
