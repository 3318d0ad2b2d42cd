"""What is said of the impossible, and what limits cost."""

from __future__ import annotations

import dataclasses
import re

import numpy as np
import pytest

from puzzle_search.arch import SearchSpace
from puzzle_search.cost import OperatingPoint
from puzzle_search.errors import InfeasibleError
from puzzle_search.solve import Limits, Problem, Workload, formulate, solve
from puzzle_search.solve.answers.diagnosis import explain_infeasible, extremes
from puzzle_search.solve.answers.prices import prices
from tests.solve.helpers import price_all, random_scores, table_of, tiny_config

CONFIG = tiny_config(3)
SPACE = SearchSpace.uniform(CONFIG, attention=["gqa_4", "gqa_1"], ffn=["mlp_64", "mlp_16"])
SCORES = random_scores(CONFIG, SPACE, np.random.default_rng(0))
TABLE = table_of(CONFIG, SPACE, [OperatingPoint(batch=b, tp=1) for b in (2, 16)])
PRICED = price_all(CONFIG, SPACE, SCORES, TABLE)


def problem(limits: Limits) -> Problem:
    return formulate(CONFIG, SPACE, SCORES, [Workload.on_device(TABLE, limits)])


def refusal(limits: Limits) -> InfeasibleError:
    with pytest.raises(InfeasibleError) as caught:
        solve(problem(limits))
    assert caught.value.remedy
    return caught.value


def test_too_fast_says_how_fast() -> None:
    error = refusal(Limits(tokens_per_second_per_gpu=1e12))
    assert "1e+12 tok/s/GPU" in error.message
    match = re.search(r"at most (\S+) tok/s/GPU \(batch 16, tp 1 in 16/9\)", error.message)
    assert match is not None
    assert float(match[1]) == pytest.approx(PRICED.throughput.max(), rel=1e-4)
    assert float(match[1]) <= PRICED.throughput.max()
    assert match[1] in error.remedy


def test_too_large_says_how_large() -> None:
    least = float(PRICED.memory_bytes.min())
    error = refusal(Limits(memory_bytes=least - 1))
    match = re.search(r"at least (\S+) GB", error.message)
    assert match is not None
    assert least <= float(match[1]) * 1e9 <= least * 1.0001


def test_what_is_said_to_be_reachable_is() -> None:
    limits = Limits(tokens_per_second_per_gpu=1e12, memory_bytes=float(PRICED.memory_bytes.max()))
    reachable = float(re.search(r"ask for (\S+) tok/s", refusal(limits).remedy)[1])  # type: ignore[index]
    answer = solve(problem(dataclasses.replace(limits, tokens_per_second_per_gpu=reachable)))
    assert answer.cost.tokens_per_second_per_gpu >= reachable


def test_each_limit_has_its_extreme_beside_the_others() -> None:
    memory = float(np.quantile(PRICED.memory_bytes, 0.4))
    fits = PRICED.memory_bytes <= memory
    limits = Limits(tokens_per_second_per_gpu=1e12, memory_bytes=memory)
    found = {e.bound.limit: e.reached for e in extremes(problem(limits))}
    assert 1e6 / found["tokens_per_second_per_gpu"] == pytest.approx(PRICED.throughput[fits].max())
    assert found["memory_bytes"] is None  # no memory makes it that fast


def test_where_no_limit_alone_is_to_blame_all_must_be_looser() -> None:
    # Each is out of reach even by itself.
    fastest, soonest = float(PRICED.throughput.max()), float(PRICED.ttft_ms.min())
    limits = Limits(tokens_per_second_per_gpu=2 * fastest, ttft_ms=soonest / 3)
    error = refusal(limits)
    assert "no limit alone" in error.message
    found = re.search(r"all of: (\S+) tok/s/GPU; (\S+) ms TTFT", error.remedy)
    assert found is not None
    target, ttft = float(found[1]), float(found[2])
    solve(problem(Limits(tokens_per_second_per_gpu=target, ttft_ms=ttft)))
    # Much less of a change would not do.
    keep = (PRICED.throughput >= target * 1.03) & (PRICED.ttft_ms <= ttft / 1.03)
    assert not keep.any()


def test_advice_with_a_margin_can_be_followed() -> None:
    memory = float(PRICED.memory_bytes.max()) * 2
    limits = Limits(tokens_per_second_per_gpu=1e12, memory_bytes=memory)

    def asked(limits: Limits) -> Problem:
        return formulate(CONFIG, SPACE, SCORES, [Workload.on_device(TABLE, limits, margin=0.25)])

    with pytest.raises(InfeasibleError) as caught:
        solve(asked(limits))
    assert "1e+12 tok/s/GPU" in caught.value.message
    reachable = float(re.search(r"ask for (\S+) tok/s", caught.value.remedy)[1])  # type: ignore[index]
    assert reachable == pytest.approx(PRICED.throughput.max() / 1.25, rel=1e-4)
    solve(asked(dataclasses.replace(limits, tokens_per_second_per_gpu=reachable)))


def test_a_question_that_can_be_met_is_not_refused() -> None:
    fastest = float(PRICED.throughput.max()) * (1 - 1e-12)
    answer = solve(problem(Limits(tokens_per_second_per_gpu=fastest)))
    assert answer.cost.tokens_per_second_per_gpu >= fastest


def test_prices_are_of_limits_that_bind() -> None:
    config = tiny_config(40)
    space = SearchSpace.uniform(config, attention=["gqa_4", "gqa_1", "no_op"], ffn=["mlp_64"])
    scores = random_scores(config, space, np.random.default_rng(1))
    table = table_of(config, space, [OperatingPoint(batch=8, tp=1)])
    limits = Limits(memory_bytes=float(table.outside_memory_bytes[0]) + 6e5, ttft_ms=1e9)

    def score(limits: Limits) -> float:
        return solve(formulate(config, space, scores, [Workload.on_device(table, limits)])).score

    solution = solve(formulate(config, space, scores, [Workload.on_device(table, limits)]))
    (found,) = prices(solution)
    assert found.bound.limit == "memory_bytes"
    # The multiplier is the slope of the relaxation: steps of a few items lie near it.
    step = 3e4
    more = dataclasses.replace(limits, memory_bytes=(limits.memory_bytes or 0) + step)
    less = dataclasses.replace(limits, memory_bytes=(limits.memory_bytes or 0) - step)
    slope = (score(less) - score(more)) / (2 * step)
    (multiplier,) = (price for price in solution.prices if price)
    assert multiplier == pytest.approx(slope, rel=0.25)
    # A whole GB more would take away all damage, and no more than that.
    assert found.gain == pytest.approx(solution.score - score(Limits()))


def test_no_batch_size_is_possible_at_all() -> None:
    outside = float(TABLE.outside_memory_bytes.min())
    error = explain_infeasible(problem(Limits(memory_bytes=outside / 2)))
    assert "GB" in error.message
