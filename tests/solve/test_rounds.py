"""Rounds against enumeration, with damages whose interactions are known."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from puzzle_search.arch import ArchitectureSpec, BlockChoice, Replacement, SearchSpace
from puzzle_search.cost import OperatingPoint
from puzzle_search.errors import InputError
from puzzle_search.solve import Limits, Problem, Workload, formulate
from puzzle_search.solve.rounds.pairs import PairJudge
from puzzle_search.solve.rounds.rounds import best_round, refine
from tests.solve.helpers import SIDECAR, ScoreRow, ScoreTable, seeds, table_of, tiny_config

LAYERS = 4
PAIRS = [("gqa_4", "mlp_64"), ("gqa_4", "mlp_16"), ("gqa_1", "mlp_64"), ("gqa_1", "mlp_16")]
Choice = tuple[int, int, str, str]


class Interacting:
    """Damage of single blocks, and of every two blocks together; counts what it is asked.

    The latter is random, or grows with the damage of both.
    """

    def __init__(self, seed: int, strength: float, *, growing: bool = False) -> None:
        self.growing = growing
        self.rng = np.random.default_rng(seed)
        self.strength = strength
        self.own: dict[Choice, float] = {}
        self.both: dict[frozenset[Choice], float] = {}
        self.measured: list[ArchitectureSpec] = []
        self.scored = 0

    def single(self, choice: Choice) -> float:
        if choice[:2] == (choice[0], choice[0]) and choice[2:] == PAIRS[0]:
            return 0.0
        return self.own.setdefault(choice, float(self.rng.uniform(0.1, 1.0)))

    def damage(self, blocks: Sequence[Choice]) -> float:
        total = sum(self.single(block) for block in blocks)
        for pair in itertools.combinations(blocks, 2):
            if all(self.single(block) for block in pair):
                drawn = float(self.rng.uniform(0, self.strength))
                if self.growing:
                    drawn *= self.single(pair[0]) * self.single(pair[1])
                total += self.both.setdefault(frozenset(pair), drawn)
        return total

    def measure(self, spec: ArchitectureSpec) -> float:
        self.measured.append(spec)
        return self.damage(blocks_of(spec))

    def around(
        self, spec: ArchitectureSpec, replacements: Sequence[Replacement]
    ) -> Mapping[Replacement, float]:
        self.scored += len(replacements)
        return {r: self.damage(changed(blocks_of(spec), r)) for r in replacements}


def blocks_of(spec: ArchitectureSpec) -> list[Choice]:
    return [(b.layers[0], b.layers[-1], b.attention, b.ffn) for b in spec.blocks]


def changed(blocks: list[Choice], replacement: Replacement) -> list[Choice]:
    first, last = replacement[:2]
    assert first in {b[0] for b in blocks}
    assert last in {b[1] for b in blocks}
    outside = [b for b in blocks if b[1] < first or b[0] > last]
    return sorted([*outside, replacement])


def posed(judge: Interacting, *, runs: bool = False, speedup: float = 1.35) -> Problem:
    config = tiny_config(LAYERS)
    space = SearchSpace.uniform(config, attention=["gqa_4", "gqa_1"], ffn=["mlp_64", "mlp_16"])
    choices: list[Choice] = [(layer, layer, *pair) for layer in range(LAYERS) for pair in PAIRS[1:]]
    if runs:
        choices += [(first, first + 1, *PAIRS[0]) for first in range(LAYERS - 1)]
    rows = [
        ScoreRow(
            first_layer=first,
            last_layer=last,
            attention=attention,
            ffn=ffn,
            metric="kl",
            value=judge.single((first, last, attention, ffn)),
            stderr=0.0,
            tokens=1,
        )
        for first, last, attention, ffn in choices
    ]
    table = table_of(config, space, [OperatingPoint(batch=4, tp=1)], seed=1)
    parent = table.cost(ArchitectureSpec.identity(config), 0).tokens_per_second_per_gpu
    limits = Limits(tokens_per_second_per_gpu=parent * speedup)
    scores = ScoreTable(rows, SIDECAR)
    return formulate(config, space, scores, [Workload.on_device(table, limits)])


def every_child(problem: Problem) -> list[list[Choice]]:
    """Every architecture of one block a layer that keeps the limits."""
    found = []
    for pairs in itertools.product(PAIRS, repeat=LAYERS):
        spec = ArchitectureSpec.of("tiny", list(pairs))
        if problem.operating_points(problem.selection(spec)) is not None:
            found.append(blocks_of(spec))
    return found


@pytest.mark.parametrize("seed", seeds(2, 8))
def test_rounds_end_where_no_change_of_the_trusted_size_helps(seed: int) -> None:
    """With every child of a step measured, the end is a local optimum by enumeration."""
    judge = Interacting(seed, strength=2.0)
    problem = posed(judge)
    found = list(refine(problem, judge, rounds=20, trust_layers=2, children=1000))
    best = min(found, key=lambda r: r.measured)
    assert best.measured <= found[0].measured
    assert best.measured == pytest.approx(judge.damage(blocks_of(best.solution.spec)))
    near = [
        blocks
        for blocks in every_child(problem)
        if sum(a != b for a, b in zip(blocks, blocks_of(best.solution.spec), strict=True)) <= 1
    ]
    assert min(judge.damage(blocks) for blocks in near) == pytest.approx(best.measured)


def test_rounds_find_what_one_shot_misses() -> None:
    gains = []
    for seed in range(4):
        judge = Interacting(seed, strength=2.0)
        problem = posed(judge)
        found = list(refine(problem, judge, rounds=5, trust_layers=4))
        optimum = min(judge.damage(blocks) for blocks in every_child(problem))
        best = min(r.measured for r in found)
        assert optimum - 1e-9 <= best
        gains.append((found[0].measured - optimum, found[0].measured - best))
    missed, won = np.array(gains).T
    assert (missed > 0.01).sum() >= 2  # else this shows nothing
    assert won.sum() >= 0.5 * missed.sum()


def test_additive_damages_leave_nothing_to_gain() -> None:
    judge = Interacting(3, strength=0.0)
    found = list(refine(posed(judge), judge, rounds=3))
    assert found[0].estimate == pytest.approx(found[0].measured)
    assert [r.number for r in found] == [0, 1, 2]
    assert all(r.measured >= found[0].measured for r in found)
    assert found[2].scored < found[2].offered  # those that could be in another optimum


def test_the_parent_is_the_answer_where_it_keeps_the_limits() -> None:
    judge = Interacting(0, strength=1.0)
    found = list(refine(posed(judge, speedup=0.5), judge, rounds=3))
    assert {block[2:] for block in blocks_of(best_round(found).solution.spec)} == {PAIRS[0]}
    assert found[0].as_dict()["estimate_error"] is None  # of nothing
    assert best_round(found).measured == 0


@pytest.mark.parametrize("runs", [False, True])
def test_every_child_measured_keeps_the_limits(runs: bool) -> None:
    judge = Interacting(5, strength=1.0)
    problem = posed(judge, runs=runs)
    found = list(refine(problem, judge, rounds=4))
    assert len(found) > 1
    for spec in judge.measured:
        assert problem.operating_points(problem.selection(spec)) is not None
    assert len(judge.measured) == sum(r.children for r in found)
    assert judge.scored == sum(r.scored for r in found) > 0


def test_a_run_of_layers_can_be_the_answer() -> None:
    """A block for two layers that does little damage alone, and none with others."""
    judge = Interacting(0, strength=3.0)
    judge.own[1, 2, "gqa_4", "mlp_64"] = 0.01
    for layer in range(LAYERS):
        for pair in PAIRS[1:]:
            judge.own[layer, layer, *pair] = 0.5
    best = min(refine(posed(judge, runs=True), judge, rounds=2), key=lambda r: r.measured)
    merged = BlockChoice(attention="gqa_4", ffn="mlp_64", layers=(1, 2))
    assert merged in best.solution.spec.blocks


def test_another_goal_is_refused() -> None:
    judge = Interacting(0, strength=1.0)
    problem = posed(judge)
    config, workload = tiny_config(LAYERS), problem.workloads[0]
    space = SearchSpace.uniform(config, attention=["gqa_4", "gqa_1"], ffn=["mlp_64", "mlp_16"])
    rows = [
        ScoreRow(
            first_layer=n, last_layer=n, attention=a, ffn=f, metric="kl", value=1.0, stderr=0.0,
            tokens=1,
        )
        for n in range(LAYERS)
        for a, f in (("gqa_1", ""), ("", "mlp_16"))
    ]  # fmt: skip
    fastest = formulate(config, space, ScoreTable(rows, SIDECAR), [workload], goal="throughput")
    with pytest.raises(InputError, match="us_per_token"):
        next(refine(fastest, judge))


def test_pairs_of_the_childs_own_blocks_are_measured_once() -> None:
    judge = Interacting(2, strength=2.0)
    problem = posed(judge)
    pairs = PairJudge(judge, problem, tiny_config(LAYERS))
    found = list(refine(problem, pairs, rounds=4))
    assert judge.scored == len(pairs.pairs) > 0
    for (one, other), extra in pairs.pairs.items():
        assert extra == pytest.approx(judge.both[frozenset([one, other])])
        assert one < other
    assert min(r.measured for r in found) <= found[0].measured


def test_inferred_damage_is_exact_where_all_pairs_are_known() -> None:
    judge = Interacting(4, strength=1.0)
    problem = posed(judge)
    pairs = PairJudge(judge, problem, tiny_config(LAYERS))
    chosen = [PAIRS[1], PAIRS[2], PAIRS[3], PAIRS[1]]
    spec = ArchitectureSpec.of("tiny", chosen)
    back = (2, 2, *PAIRS[0])
    assert pairs.around(spec, [back])[back] == pytest.approx(
        judge.damage(changed(blocks_of(spec), back))
    )


def test_pairs_never_lose_and_sometimes_win() -> None:
    gains = []
    for seed in range(6):
        judge = Interacting(seed, strength=20.0, growing=True)
        problem = posed(judge)
        optimum = min(judge.damage(blocks) for blocks in every_child(problem))
        pairs = PairJudge(judge, problem, tiny_config(LAYERS))
        found = list(refine(problem, pairs, rounds=5))
        best = min(r.measured for r in found)
        gains.append((found[0].measured - optimum, found[0].measured - best))
    missed, won = np.array(gains).T
    assert won.min() >= 0
    assert (won <= missed + 1e-9).all()
    assert won.max() > 0.1
