"""CP-SAT and HiGHS give the same answers on problems of the published size."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from puzzle_search.arch import ArchitectureSpec, SearchSpace
from puzzle_search.cost import OperatingPoint
from puzzle_search.solve import Limits, Problem, ScoreTable, Workload, formulate, solve
from tests.solve.helpers import SIDECAR, rows_of, seeds, table_of, tiny_config

RAW = {"hidden_size": 256, "num_attention_heads": 8, "num_key_value_heads": 8}
CONFIG = tiny_config(80, **RAW, intermediate_size=1024)
ATTENTION = ["gqa_8", "gqa_4", "gqa_2", "gqa_1", "linear", "no_op"]
FFN = [f"mlp_{width}" for width in (1024, 896, 768, 512, 256, 192, 96)] + ["linear", "no_op"]
SPACE = SearchSpace.uniform(CONFIG, attention=ATTENTION, ffn=FFN)


def problem(seed: int) -> Problem:
    """80 layers of 54 choices at three batch sizes; every second one without sums of damage."""
    rng = np.random.default_rng(seed)
    values: dict[tuple[int, str, str], float] = {}
    for layer in range(80):
        level = rng.lognormal(0, 0.7, 2)
        attention = level[0] * np.sort(rng.uniform(0, 1, 5))
        ffn = level[1] * np.sort(rng.uniform(0, 1, 8))
        values |= {(layer, v, ""): x for v, x in zip(ATTENTION[1:], attention, strict=True)}
        values |= {(layer, "", v): x for v, x in zip(FFN[1:], ffn, strict=True)}
        if seed % 2:
            for v, x in zip(ATTENTION[1:], attention, strict=True):
                for w, y in zip(FFN[1:], ffn, strict=True):
                    values[layer, v, w] = (x + y) * rng.uniform(0.6, 0.9)
    table = table_of(
        CONFIG, SPACE, [OperatingPoint(batch=b, tp=1) for b in (32, 64, 96)], seed=seed
    )
    parent = table.cost(ArchitectureSpec.identity(CONFIG), 1)
    target = dataclasses.replace(
        table.target, memory_limit_bytes=int(rng.uniform(0.5, 0.9) * parent.memory_bytes)
    )
    limits = Limits(
        tokens_per_second_per_gpu=rng.uniform(1.1, 2.0) * parent.tokens_per_second_per_gpu
    )
    workload = Workload.on_device(dataclasses.replace(table, target=target), limits)
    return formulate(CONFIG, SPACE, ScoreTable(rows_of(values), SIDECAR), [workload])


@pytest.mark.parametrize("seed", seeds(12, 200))
def test_cp_sat_and_highs_agree(seed: int) -> None:
    asked = problem(seed)
    cp_sat, highs = (solve(asked, backend=name) for name in ("cp-sat", "highs"))
    assert cp_sat.status == highs.status == "optimal"
    assert cp_sat.score == pytest.approx(highs.score, rel=1e-8)


@pytest.mark.parametrize("seed", range(4))
def test_the_default_agrees_too_whatever_the_unit_of_the_scores(seed: int) -> None:
    asked = problem(seed)
    default, highs = solve(asked), solve(asked, backend="highs")
    assert default.score == pytest.approx(highs.score, rel=1e-8)
    for factor in (1e-6, 1e6):
        goal = dataclasses.replace(asked.goal, items=asked.damage * factor)
        scaled = dataclasses.replace(asked, damage=asked.damage * factor, goal=goal)
        assert solve(scaled).spec.blocks == default.spec.blocks
