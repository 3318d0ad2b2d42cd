"""The solver against enumeration on small problems and scipy's HiGHS on larger ones."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import Bounds, LinearConstraint, milp

from puzzle_search.arch import ArchitectureSpec, SearchSpace
from puzzle_search.cost import OperatingPoint
from puzzle_search.errors import InfeasibleError, InputError
from puzzle_search.solve import Limits, Problem, ScoreTable, Solution, search, solve
from puzzle_search.solve.exact import CoreResult, solve_core
from puzzle_search.solve.problem import PointProblem
from puzzle_search.solve.relaxation import relax
from tests.solve.helpers import (
    SIDECAR,
    Priced,
    price_all,
    random_scores,
    random_space,
    rows_of,
    table_of,
    tiny_config,
)

BACKENDS = ("scip", "highs", "cp-sat")
POINTS = [OperatingPoint(batch=b, tp=t) for t in (1, 2) for b in (1, 8)]


@dataclasses.dataclass(frozen=True)
class Small:
    """A random problem with all its architectures."""

    problem: Problem
    priced: Priced

    @property
    def least(self) -> float:
        """Least damage by enumeration; infinite if nothing keeps the limits."""
        keep = self.priced.allowed(
            self.problem.limits, self.problem.cost.target.memory_limit_bytes
        ).any(axis=0)
        return float(self.priced.damage[keep].min()) if keep.any() else np.inf


def small(seed: int, *, low: float = 0.0, high: float = 1.0, limited: bool = True) -> Small:
    rng = np.random.default_rng(seed)
    config = tiny_config(int(rng.integers(3, 5)))
    space = random_space(config, rng)
    scores = random_scores(config, space, rng, low=low, high=high)
    points = [POINTS[i] for i in sorted(rng.choice(4, int(rng.integers(2, 5)), replace=False))]
    table = table_of(config, space, points, seed=seed)
    priced = price_all(config, space, scores, table)

    def quantile(values: np.ndarray) -> float:
        # Apart from any architecture's own cost, which other orders of summation round otherwise.
        return float(np.quantile(values, rng.uniform(0.02, 0.9))) * (1 + 1e-6)

    limits: dict[str, float] = {}
    if limited:
        if rng.random() < 0.6:
            limits["tokens_per_second_per_gpu"] = quantile(priced.throughput)
        for name in ("ttft_ms", "tpot_ms", "latency_ms"):
            if rng.random() < 0.3:
                limits[name] = quantile(getattr(priced, name))
        if rng.random() < 0.3:
            limits["parameters"] = int(quantile(priced.parameters))
        memory = int(quantile(priced.memory_bytes))
        target = dataclasses.replace(table.target, memory_limit_bytes=memory)
        table = dataclasses.replace(table, target=target)
    problem = Problem.build(config, space, scores, table, Limits(**limits))  # type: ignore[arg-type]
    return Small(problem, priced)


def pairs_of(spec: ArchitectureSpec) -> list[tuple[str, str]]:
    return [(block.attention, block.ffn) for block in spec.blocks]


def check(case: Small, answer: Solution) -> None:
    """The answer is the least by enumeration, adds up, and keeps every limit as reported."""
    problem, limits, cost = case.problem, case.problem.limits, answer.cost
    assert answer.status == "optimal"
    assert answer.gap == 0
    assert answer.score == pytest.approx(case.least, rel=1e-9, abs=1e-12)
    columns = [problem.pairs.index(pair) for pair in pairs_of(answer.spec)]
    assert answer.score == pytest.approx(
        sum(problem.damage[layer, column] for layer, column in enumerate(columns)), abs=1e-12
    )
    assert cost.memory_bytes <= cost.memory_limit_bytes
    assert cost.tokens_per_second_per_gpu >= (limits.tokens_per_second_per_gpu or 0)
    assert cost.ttft_ms <= (limits.ttft_ms or np.inf)
    assert cost.tpot_ms <= (limits.tpot_ms or np.inf)
    assert cost.latency_ms <= (limits.latency_ms or np.inf)
    assert answer.parameters <= (limits.parameters or np.inf)


@given(seed=st.integers(0, 10**6), backend=st.sampled_from(["scip", "highs"]))
@settings(max_examples=40)
def test_small_problems_are_solved_as_by_enumeration(seed: int, backend: str) -> None:
    case = small(seed)
    if np.isinf(case.least):
        with pytest.raises(InfeasibleError):
            solve(case.problem, backend=backend)  # type: ignore[arg-type]
    else:
        check(case, solve(case.problem, backend=backend))  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", range(6))
def test_cp_sat_gives_the_same_answer(seed: int) -> None:
    case = small(seed)
    if np.isinf(case.least):
        with pytest.raises(InfeasibleError):
            solve(case.problem, backend="cp-sat")
    else:
        check(case, solve(case.problem, backend="cp-sat"))


@given(seed=st.integers(0, 10**6))
@settings(max_examples=20)
def test_negative_damages(seed: int) -> None:
    case = small(seed, low=-2.0, high=0.5)
    if np.isfinite(case.least):
        check(case, solve(case.problem))


@pytest.mark.parametrize("value", [0.0, -1.0])
@pytest.mark.parametrize("seed", range(4))
def test_equal_damages(seed: int, value: float) -> None:
    case = small(seed, low=value, high=value)
    if np.isfinite(case.least):
        check(case, solve(case.problem))
    else:
        with pytest.raises(InfeasibleError):
            solve(case.problem)


@given(seed=st.integers(0, 10**6), backend=st.sampled_from(["scip", "highs"]))
@settings(max_examples=20)
def test_a_limit_at_an_architectures_own_cost_keeps_it(seed: int, backend: str) -> None:
    # The hardest case for tolerances: the limit is met with nothing to spare.
    case = small(seed, limited=False)
    rng, problem = np.random.default_rng(seed), case.problem
    allowed = [
        [pair for pair, damage in zip(problem.pairs, row, strict=True) if np.isfinite(damage)]
        for row in problem.damage
    ]
    spec = ArchitectureSpec.of("tiny", [row[rng.integers(len(row))] for row in allowed])
    own = problem.cost.cost(spec, int(rng.integers(len(problem.cost.points))))
    limits = Limits(
        tokens_per_second_per_gpu=own.tokens_per_second_per_gpu,
        ttft_ms=own.ttft_ms,
        tpot_ms=own.tpot_ms,
        latency_ms=own.latency_ms,
    )
    target = dataclasses.replace(problem.cost.target, memory_limit_bytes=own.memory_bytes)
    table = dataclasses.replace(problem.cost, target=target)
    bound = dataclasses.replace(problem, limits=limits, cost=table)
    answer = solve(bound, backend=backend)  # type: ignore[arg-type]
    columns = [problem.pairs.index(pair) for pair in pairs_of(spec)]
    assert answer.score <= problem.score(np.array(columns)) + 1e-12
    assert answer.cost.tokens_per_second_per_gpu >= own.tokens_per_second_per_gpu
    assert answer.cost.ttft_ms <= own.ttft_ms
    assert answer.cost.tpot_ms <= own.tpot_ms
    assert answer.cost.memory_bytes <= own.memory_bytes


def scaled(problem: Problem, factor: float) -> Problem:
    return dataclasses.replace(problem, damage=problem.damage * factor)


@pytest.mark.parametrize("factor", [1e-6, 1e6])
@pytest.mark.parametrize("seed", range(10))
def test_the_unit_of_the_scores_does_not_matter(seed: int, factor: float) -> None:
    case = small(seed)
    if np.isinf(case.least):
        pytest.skip("infeasible")
    answer, other = solve(case.problem), solve(scaled(case.problem, factor))
    assert other.spec.blocks == answer.spec.blocks
    assert other.score == pytest.approx(factor * answer.score, rel=1e-9)
    assert other.status == "optimal"


@pytest.mark.parametrize("seed", range(8))
def test_exceptions_of_the_search_space_are_kept(seed: int) -> None:
    case = small(seed, limited=False)
    config = case.problem.config
    attention, ffn = ["gqa_4", "gqa_1", "no_op"], ["mlp_64", "mlp_16", "no_op"]
    free = SearchSpace.uniform(config, attention=attention, ffn=ffn)
    frozen = SearchSpace(
        attention=(("gqa_4",), *free.attention[1:]), ffn=(*free.ffn[:-1], ("mlp_64",))
    )
    rng = np.random.default_rng(seed)
    scores = random_scores(config, free, rng)
    table = table_of(config, free, POINTS[:2], seed=seed)
    fastest = price_all(config, frozen, scores, table).throughput.max()
    limits = Limits(tokens_per_second_per_gpu=float(fastest) * 0.8)
    answer = solve(Problem.build(config, frozen, scores, table, limits))
    assert answer.spec.blocks[0].attention == "gqa_4"
    assert answer.spec.blocks[-1].ffn == "mlp_64"
    check(
        Small(answer.problem, price_all(config, frozen, scores, table)),
        answer,
    )


def without_limits(seed: int) -> Problem:
    return small(seed, limited=False).problem


def test_without_limits_the_parent_is_the_answer() -> None:
    answer = solve(without_limits(0))
    assert set(pairs_of(answer.spec)) == {("gqa_4", "mlp_64")}
    assert answer.score == answer.bound == answer.gap == 0


def test_a_back_end_that_is_not_known() -> None:
    point = without_limits(0).at(0)
    kept = np.isfinite(point.damage)
    with pytest.raises(InputError, match="cplex"):
        solve_core(
            point,
            kept,
            lower=0,
            incumbent=1,
            seconds=1,
            backend="cplex",  # type: ignore[arg-type]
        )


@pytest.mark.parametrize("wide_rounds", [1, 3, 99])
@pytest.mark.parametrize("seed", [3, 11, 12])
def test_an_answer_beyond_a_limit_by_a_tolerance_is_not_taken(
    monkeypatch: pytest.MonkeyPatch, seed: int, wide_rounds: int
) -> None:
    # A solver that lets the limits go until they are tightened often enough.
    calls: dict[float, int] = {}

    def loose(point: PointProblem, kept: np.ndarray, **given: Any) -> CoreResult:
        calls[given["lower"]] = calls.get(given["lower"], 0) + 1
        if calls[given["lower"]] <= wide_rounds:
            choice = np.where(kept, point.damage, np.inf).argmin(axis=1)
            score = float(point.damage[np.arange(len(choice)), choice].sum())
            return CoreResult(choice=choice, bound=max(given["lower"], score))
        return solve_core(point, kept, **given)

    case = small(seed)
    if np.isinf(case.least):
        pytest.skip("infeasible")
    monkeypatch.setattr(search, "solve_core", loose)
    answer = solve(case.problem)
    assert answer.score >= case.least - 1e-12
    assert answer.bound <= case.least + 1e-12
    assert any(case.problem.holds(answer.spec, i) for i in range(len(case.problem.cost.points)))
    if answer.status == "optimal":
        assert answer.score == pytest.approx(case.least, abs=1e-9)
    else:
        assert answer.gap > 0


# --- the relaxation ----------------------------------------------------------------------------


@given(seed=st.integers(0, 10**6), low=st.sampled_from([-2.0, 0.0, 1.0]))
@settings(max_examples=40)
def test_the_relaxation_is_a_bound_and_fixes_nothing_of_a_better_answer(
    seed: int, low: float
) -> None:
    case = small(seed, low=low, high=max(low, 1.0))
    problem = case.problem
    keep = case.priced.allowed(problem.limits, problem.cost.target.memory_limit_bytes)
    columns = [np.flatnonzero(np.isfinite(row)) for row in problem.damage]
    for index in range(len(problem.cost.points)):
        relaxation = relax(problem.at(index))
        if not keep[index].any():
            continue
        damage = np.where(keep[index], case.priced.damage, np.inf)
        assert relaxation.bound <= damage.min() + 1e-12
        # Enumeration runs through the allowed pairs of each layer, the last layer fastest.
        best = np.unravel_index(damage.argmin(), [len(c) for c in columns])
        for layer, position in enumerate(best):
            forced = relaxation.reduced[layer, columns[layer][position]]
            assert relaxation.bound + forced <= damage.min() + 1e-9


# --- larger problems ---------------------------------------------------------------------------


def medium(seed: int, *, structured: bool = False) -> Problem:
    """80 layers of 6 x 9 variants at one point, with memory and throughput limits."""
    rng = np.random.default_rng(seed)
    raw = {"hidden_size": 256, "num_attention_heads": 8, "num_key_value_heads": 8}
    config = tiny_config(80, **raw, intermediate_size=1024)
    attention = ["gqa_8", "gqa_4", "gqa_2", "gqa_1", "linear", "no_op"]
    ffn = [f"mlp_{w}" for w in (1024, 896, 768, 512, 256, 192, 96)] + ["linear", "no_op"]
    space = SearchSpace.uniform(config, attention=attention, ffn=ffn)
    values: dict[tuple[int, str, str], float] = {}
    curve = np.sort(rng.uniform(0, 1, 5)), np.sort(rng.uniform(0, 1, 8))
    for layer in range(80):
        level = rng.lognormal(0, 0.7, 2) if not structured else np.array([1.0, 1.0])
        for i, v in enumerate(attention[1:]):
            noise = 1 if structured else rng.uniform(0.5, 1.5)
            values[layer, v, ""] = level[0] * curve[0][i] * noise
        for i, v in enumerate(ffn[1:]):
            noise = 1 if structured else rng.uniform(0.5, 1.5)
            values[layer, "", v] = level[1] * curve[1][i] * noise
    table = table_of(config, space, [OperatingPoint(batch=64, tp=1)], seed=seed)
    parent = table.cost(ArchitectureSpec.identity(config), 0)
    target = dataclasses.replace(table.target, memory_limit_bytes=int(0.7 * parent.memory_bytes))
    return Problem.build(
        config,
        space,
        ScoreTable(rows_of(values), SIDECAR),
        dataclasses.replace(table, target=target),
        Limits(tokens_per_second_per_gpu=1.4 * parent.tokens_per_second_per_gpu),
    )


def milp_bounds(problem: Problem, *, identical: bool = False) -> tuple[float, float]:
    """Lower and upper bound of the plain x[layer, pair] program at the only point, by HiGHS."""
    cost = problem.cost
    a = [cost.attention.variants.index(pair[0]) for pair in problem.pairs]
    f = [cost.ffn.variants.index(pair[1]) for pair in problem.pairs]
    time_us = sum(
        getattr(part, name)[0, chosen]
        for part, chosen in ((cost.attention, a), (cost.ffn, f))
        for name in ("prefill_us", "decode_us")
    )
    memory = cost.attention.memory_bytes[0, a] + cost.ffn.memory_bytes[0, f]
    outside_us = cost.outside_prefill_us[0] + cost.outside_decode_us[0]
    wanted = problem.limits.tokens_per_second_per_gpu
    assert wanted is not None
    tokens = cost.points[0].batch * cost.scenario.output_len / cost.points[0].tp
    room = cost.target.memory_limit_bytes - (
        cost.outside_weight_bytes[0] + cost.activation_bytes[0]
    )
    layers, pairs = problem.damage.shape
    damage, uses = problem.damage.ravel(), np.stack(
        [np.tile(time_us, layers) / (tokens * 1e6 / wanted - outside_us),
         np.tile(memory, layers) / room]
    )  # fmt: skip
    one = LinearConstraint(np.kron(np.eye(layers), np.ones(pairs)), 1, 1)
    largest = 1
    if identical:  # counts of the pairs say all
        damage, uses, largest = damage[:pairs], uses[:, :pairs], layers
        one = LinearConstraint(np.ones((1, pairs)), layers, layers)
    result = milp(
        damage,
        integrality=np.ones(len(damage)),
        bounds=Bounds(0, largest),
        constraints=[one, LinearConstraint(uses, -np.inf, 1)],
        options={"time_limit": 20, "mip_rel_gap": 1e-6},
    )
    upper = np.inf if result.x is None else float(result.fun)
    return -np.inf if result.mip_dual_bound is None else float(result.mip_dual_bound), upper


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
def test_medium_problems_are_solved_as_by_scipy(seed: int) -> None:
    problem = medium(seed)
    answer = solve(problem, max_seconds=60)
    lower, upper = milp_bounds(problem)
    assert answer.status == "optimal"
    # HiGHS lets limits and integers pass by 1e-6.
    assert lower * (1 - 1e-5) <= answer.score <= upper * (1 + 1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_identical_layers_are_solved_to_optimality(seed: int) -> None:
    answer = solve(medium(seed, structured=True), max_seconds=60)
    lower, upper = milp_bounds(answer.problem, identical=True)
    assert answer.status == "optimal"
    assert lower * (1 - 1e-5) <= answer.score <= upper * (1 + 1e-5)
    assert upper <= lower * (1 + 1e-4)


@pytest.mark.parametrize("max_seconds", [0.0, 0.001, 0.3])
def test_a_timeout_is_never_called_optimal_without_proof(max_seconds: float) -> None:
    problem = medium(3)
    best = solve(problem, max_seconds=60)
    answer = solve(problem, max_seconds=max_seconds)
    assert answer.seconds < max_seconds + 3
    assert answer.bound <= best.score * (1 + 1e-9)
    assert best.score <= answer.score * (1 + 1e-9)
    if answer.status == "optimal":
        assert answer.score == pytest.approx(best.score, rel=1e-9)
    else:
        assert answer.gap == pytest.approx((answer.score - answer.bound) / answer.score)
        assert answer.gap > 0
    assert problem.holds(answer.spec, 0)


def test_a_timeout_at_score_zero_is_not_called_optimal(monkeypatch: pytest.MonkeyPatch) -> None:
    # The parent, of score 0, is all that is found, while others have negative damage.
    problem = small(1, low=-1.0, high=-0.5, limited=False).problem
    parent = np.zeros(problem.num_layers, dtype=np.intp)
    monkeypatch.setattr(search, "feasible_answer", lambda point, relaxation: parent)
    answer = solve(problem, max_seconds=0.0)
    assert (answer.status, answer.score) == ("feasible", 0)
    assert answer.bound < 0 < answer.gap < np.inf
