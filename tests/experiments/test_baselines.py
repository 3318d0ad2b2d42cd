"""What needs no solver keeps the limits too, and is never better than the solver."""

from __future__ import annotations

import dataclasses
import sys

import numpy as np
import pytest

from puzzle_search.arch import ArchitectureSpec, SearchSpace
from puzzle_search.cost import OperatingPoint
from puzzle_search.solve import Limits, Problem, Workload, formulate, solve
from tests.pico import ROOT
from tests.solve.helpers import random_scores, table_of, tiny_config

sys.path.insert(0, str(ROOT / "experiments" / "paper"))

from baselines import greedy, random_specs, uniform


def problem_of(seed: int, *, faster: float = 1.3) -> Problem:
    config = tiny_config(8)
    space = SearchSpace.uniform(
        config, attention=["gqa_4", "gqa_1", "no_op"], ffn=["mlp_64", "mlp_32", "mlp_16", "no_op"]
    )
    scores = random_scores(config, space, np.random.default_rng(seed))
    table = table_of(config, space, [OperatingPoint(batch=b, tp=1) for b in (4, 16)], seed=seed)
    parent = table.best_cost(ArchitectureSpec.identity(config))
    assert parent is not None
    limits = Limits(tokens_per_second_per_gpu=faster * parent.tokens_per_second_per_gpu)
    return formulate(config, space, scores, [Workload.on_device(table, limits)])


def damage(problem: Problem, spec: ArchitectureSpec) -> float:
    return problem.score(problem.selection(spec))


def keeps(problem: Problem, spec: ArchitectureSpec) -> bool:
    (workload,) = problem.workloads
    cost = workload.table.best_cost(spec)
    wanted = workload.limits.tokens_per_second_per_gpu
    return cost is not None and cost.tokens_per_second_per_gpu >= (wanted or 0)


@pytest.mark.parametrize("seed", range(4))
def test_baselines_keep_the_limits_and_the_solver_is_no_worse(seed: int) -> None:
    problem = problem_of(seed)
    best = solve(problem)
    found = [greedy(problem), uniform(problem), *random_specs(problem, 3, tolerance=0.1)]
    assert len(found) == 5
    for spec in found:
        assert spec is not None
        assert keeps(problem, spec)
        assert best.score <= damage(problem, spec) + 1e-12


def test_uniform_is_uniform() -> None:
    spec = uniform(problem_of(0))
    assert spec is not None
    assert len({(block.attention, block.ffn) for block in spec.blocks}) == 1


def test_random_specs_repeat_with_their_seed() -> None:
    problem = problem_of(0)
    once, again = (random_specs(problem, 2, tolerance=0.1, seed=3) for _ in range(2))
    assert once == again
    assert once[0] != once[1]


def test_the_impossible_gives_nothing() -> None:
    problem = problem_of(0, faster=1e6)
    assert greedy(problem) is None
    assert uniform(problem) is None
    assert random_specs(problem, 2) == []


def test_loose_limits_give_fewer_random_specs_than_asked() -> None:
    # Nothing comes near the limits, so that no architecture uses 98% of them.
    problem = problem_of(0)
    free = dataclasses.replace(problem.workloads[0], limits=Limits(memory_bytes=1e12))
    problem = dataclasses.replace(problem, workloads=(free,))
    assert random_specs(problem, 1) == []
