"""Candidates for probes: all keep the limits, and the kinds are what enumeration finds."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from puzzle_search.arch import SearchSpace
from puzzle_search.cost import OperatingPoint
from puzzle_search.solve import Limits, Workload, formulate, solve
from puzzle_search.solve.answers.candidates import candidates
from tests.solve.helpers import price_all, random_scores, table_of, tiny_config

LAYERS, COUNT = 5, 6


@pytest.mark.parametrize("seed", range(4))
def test_kinds_by_enumeration(seed: int) -> None:
    config = tiny_config(LAYERS)
    space = SearchSpace.uniform(
        config, attention=["gqa_4", "gqa_1", "no_op"], ffn=["mlp_64", "no_op"]
    )
    scores = random_scores(config, space, np.random.default_rng(seed))
    table = table_of(config, space, [OperatingPoint(batch=4, tp=1)], seed=seed)
    priced = price_all(config, space, scores, table)
    target = float(np.quantile(priced.throughput, 0.6)) * (1 + 1e-7)
    limits = Limits(tokens_per_second_per_gpu=target)
    keep = priced.allowed(limits, 10**12).any(axis=0)
    problem = formulate(config, space, scores, [Workload.on_device(table, limits)])
    found = candidates(problem, solve(problem), config, COUNT)
    assert len({one.spec.blocks for one in found}) == len(found) == COUNT
    assert all(problem.operating_points(one.selection) for one in found)
    assert found[0].score == pytest.approx(float(priced.damage[keep].min()))

    pairs = list(itertools.product(("gqa_4", "gqa_1", "no_op"), ("mlp_64", "no_op")))
    choices = np.array(list(itertools.product(range(len(pairs)), repeat=LAYERS)))
    whole = np.isin(choices, [pairs.index(("gqa_4", "mlp_64")), pairs.index(("no_op", "no_op"))])
    allowed = keep & whole.all(axis=1)
    scored = [one.score for one in found]
    if allowed.any():
        assert scored[1] == pytest.approx(float(priced.damage[allowed].min()))
        rooted = 2
    else:
        rooted = 1
    each = np.array(
        [
            [scores.block_damage(n, *pair, config, {"kl": 1.0}) for pair in pairs]
            for n in range(LAYERS)
        ]
    )
    roots = np.sqrt(each)[np.arange(LAYERS), choices].sum(axis=1)
    gathered = int(np.flatnonzero(keep)[np.argmin(roots[keep])])
    assert float(priced.damage[gathered]) == pytest.approx(scored[rooted]) or float(
        priced.damage[gathered]
    ) in [pytest.approx(score) for score in scored[:rooted]]
