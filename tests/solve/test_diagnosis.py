"""What is said of the impossible."""

from __future__ import annotations

import dataclasses
import re

import numpy as np
import pytest

from puzzle_search.arch import SearchSpace
from puzzle_search.cost import OperatingPoint
from puzzle_search.errors import InfeasibleError
from puzzle_search.solve import Limits, Problem, solve
from tests.solve.helpers import price_all, random_scores, table_of, tiny_config

CONFIG = tiny_config(3)
SPACE = SearchSpace.uniform(CONFIG, attention=["gqa_4", "gqa_1"], ffn=["mlp_64", "mlp_16"])
SCORES = random_scores(CONFIG, SPACE, np.random.default_rng(0))
TABLE = table_of(CONFIG, SPACE, [OperatingPoint(batch=b, tp=1) for b in (2, 16)])
PRICED = price_all(CONFIG, SPACE, SCORES, TABLE)


def refusal(limits: Limits, memory_limit_bytes: int = 10**12) -> InfeasibleError:
    target = dataclasses.replace(TABLE.target, memory_limit_bytes=memory_limit_bytes)
    table = dataclasses.replace(TABLE, target=target)
    with pytest.raises(InfeasibleError) as caught:
        solve(Problem.build(CONFIG, SPACE, SCORES, table, limits))
    assert caught.value.remedy
    return caught.value


def test_too_fast_says_how_fast() -> None:
    error = refusal(Limits(tokens_per_second_per_gpu=1e12))
    assert "tokens_per_second_per_gpu 1e+12" in error.message
    match = re.search(r"at most (\S+) tok/s/GPU on test in 16/9 \(batch 16, tp 1\)", error.message)
    assert match is not None
    assert float(match[1]) == pytest.approx(PRICED.throughput.max(), rel=1e-3)


def test_too_large_says_how_large() -> None:
    least = PRICED.memory_bytes.min()
    error = refusal(Limits(), memory_limit_bytes=int(least) - 1)
    assert f"needs {least / 1e9:.3g} GB" in error.message


def test_what_can_be_reached_is_not_refused() -> None:
    solve(Problem.build(CONFIG, SPACE, SCORES, TABLE, Limits(tokens_per_second_per_gpu=1)))
    fastest = float(PRICED.throughput.max()) * (1 - 1e-12)
    limits = Limits(tokens_per_second_per_gpu=fastest)
    answer = solve(Problem.build(CONFIG, SPACE, SCORES, TABLE, limits))
    assert answer.cost.tokens_per_second_per_gpu >= fastest
