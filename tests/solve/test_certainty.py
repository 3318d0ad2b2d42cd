"""How sure an answer is, against every architecture enumerated at every draw."""

from __future__ import annotations

import dataclasses
import itertools
import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from puzzle_search.arch import ArchitectureSpec, BlockChoice, SearchSpace
from puzzle_search.cost import CostTable, OperatingPoint
from puzzle_search.errors import InputError
from puzzle_search.solve import Limits, Problem, ScoreRow, ScoreTable, Workload, formulate, solve
from puzzle_search.solve.answers.certainty import certainty, compare, drawn
from tests.pico import run_here
from tests.solve.helpers import SIDECAR, price_all, random_scores, table_of, tiny_config

CONFIG = tiny_config(4)
SPACE = SearchSpace.uniform(CONFIG, attention=["gqa_4", "gqa_1"], ffn=["mlp_64", "mlp_16"])
PAIRS = list(itertools.product(["gqa_4", "gqa_1"], ["mlp_64", "mlp_16"]))
# Weights and norm of each subblock, hidden size 32, 4 query heads of 8.
PARAMETERS = {
    "gqa_4": 4 * 32 * 32 + 32, "gqa_1": 2 * 32 * 32 + 2 * 32 * 8 + 32,
    "mlp_64": 3 * 32 * 64 + 32, "mlp_16": 3 * 32 * 16 + 32,
}  # fmt: skip
DRAWS = 12


def uncertain(share: float, seed: int = 3) -> ScoreTable:
    scores = random_scores(CONFIG, SPACE, np.random.default_rng(seed), low=0.2)
    rows = [dataclasses.replace(row, stderr=share * row.value) for row in scores.rows]
    return ScoreTable(rows, SIDECAR)


def posed(costs: CostTable, limits: Limits, scores: ScoreTable) -> Problem:
    return formulate(CONFIG, SPACE, scores, [Workload.on_device(costs, limits)])


def test_it_is_what_enumeration_gives_at_every_draw() -> None:
    scores = uncertain(0.5)
    costs = table_of(CONFIG, SPACE, [OperatingPoint(batch=4, tp=1)], seed=3)
    priced = price_all(CONFIG, SPACE, scores, costs)
    # Apart from any architecture's own throughput, which is summed in another order here.
    target = float(np.quantile(priced.throughput, 0.5)) * (1 + 1e-7)
    limits = Limits(tokens_per_second_per_gpu=target)
    keep = priced.allowed(limits, 10**12).any(axis=0)
    choices = np.array(list(itertools.product(range(4), repeat=4)))[keep]

    def best(table: ScoreTable) -> np.ndarray:
        return choices[np.argmin(price_all(CONFIG, SPACE, table, costs).damage[keep])]

    answer = best(scores)
    others = [best(drawn(scores, number)) for number in range(DRAWS)]
    held = np.mean([other == answer for other in others], axis=0)
    size = np.array([PARAMETERS[a] + PARAMETERS[f] for a, f in PAIRS])
    moved = np.mean([np.maximum(0, size[answer] - size[other]).sum() for other in others])
    assert moved > 0
    assert 0 < held.mean() < 1

    pose = partial(posed, costs, limits)
    found = certainty(solve(pose(scores)), CONFIG, scores, pose, draws=DRAWS, workers=1)
    assert found.held == pytest.approx(held)
    assert found.moved_layers == pytest.approx(4 - held.sum())
    assert found.sure_layers == (held >= 0.95).sum()
    assert found.moved_parameters == pytest.approx(moved)
    assert found.parameters == size[answer].sum()
    assert found.unanswered == 0
    assert f"{found.moved_layers:.1f} layers" in str(found)


def test_a_block_in_place_of_two_layers_is_one_choice() -> None:
    config = tiny_config(2)

    def spec(*blocks: tuple[str, str, tuple[int, ...]]) -> ArchitectureSpec:
        chosen = [BlockChoice(attention=a, ffn=f, layers=layers) for a, f, layers in blocks]
        return ArchitectureSpec(parent="tiny", blocks=tuple(chosen))

    answer = spec(("gqa_4", "mlp_64", (0, 1)))
    split = spec(("no_op", "mlp_16", (0,)), ("gqa_4", "mlp_64", (1,)))
    found = compare(answer, [answer, split], config, 3)
    assert found.held == (0.5, 0.5)
    assert found.unanswered == 1
    assert found.moved_parameters == 0  # the two layers have more than the one block
    # The block's parameters count in equal parts for its layers.
    half = (PARAMETERS["gqa_4"] + PARAMETERS["mlp_64"]) / 2
    back = compare(split, [answer], config, 1)
    assert back.moved_parameters == max(0, PARAMETERS["mlp_16"] - half) + half
    assert "1 without an answer" in str(found)


def row(layer: int, attention: str, ffn: str, value: float, stderr: float) -> ScoreRow:
    return ScoreRow(
        first_layer=layer, last_layer=layer, attention=attention, ffn=ffn, metric="kl",
        value=value, stderr=stderr, tokens=1,
    )  # fmt: skip


def test_draws_have_the_scores_means_and_errors_and_stay_above_zero() -> None:
    rows = [row(0, "no_op", "", 0.1, 0.08), row(0, "", "mlp_16", -0.02, 0.01)]
    table = ScoreTable(rows, SIDECAR)
    values = np.array([[r.value for r in drawn(table, n).rows] for n in range(4000)])
    assert values[:, 0].min() > 0
    assert values.mean(axis=0) == pytest.approx([0.1, -0.02], rel=0.05)
    assert values.std(axis=0) == pytest.approx([0.08, 0.01], rel=0.1)
    assert abs(np.corrcoef(values.T)[0, 1]) < 0.1


def test_variants_of_a_subblock_err_together_and_layers_apart() -> None:
    rows = [row(n, a, "", v, 0.3 * v) for n in (0, 1) for a, v in (("gqa_1", 0.1), ("no_op", 0.4))]
    table = ScoreTable([*rows, row(0, "", "mlp_16", 0.2, 0.0)], SIDECAR)
    for number in range(20):
        one, all_of_it, other, _, known = (r.value for r in drawn(table, number).rows)
        assert all_of_it / one == pytest.approx(4)
        assert other != pytest.approx(one)
        assert known == 0.2


def test_a_table_without_errors_or_no_draws_are_refused() -> None:
    costs = table_of(CONFIG, SPACE, [OperatingPoint(batch=4, tp=1)])
    pose = partial(posed, costs, Limits())
    exact = uncertain(0.0)
    with pytest.raises(InputError, match="lacks standard errors"):
        certainty(solve(pose(exact)), CONFIG, exact, pose)
    known = uncertain(0.1)
    with pytest.raises(InputError, match="tell nothing"):
        certainty(solve(pose(known)), CONFIG, known, pose, draws=0)


def test_the_command_says_it_and_the_spec_keeps_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = tmp_path / "child.yaml"
    run_here("solve", "--target-tps", "6000", "--certainty", "2", "--out", spec, "--json")
    shown = json.loads(capsys.readouterr().out)["certainty"]
    assert shown == ArchitectureSpec.from_file(spec).solution["certainty"]
    assert shown["draws"] == 2
    assert len(shown["held"]) == 80
    assert sum(1 - share for share in shown["held"]) == pytest.approx(shown["moved_layers"])
