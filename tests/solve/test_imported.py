"""Search over imported tables, against enumeration of the tables themselves."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from puzzle_search.cost.block_costs import BlockCost, BlockCosts, OutsideCost
from puzzle_search.errors import InfeasibleError, InputError
from puzzle_search.solve import ScoreRow, ScoreTable, solve
from puzzle_search.solve.question.tables import TableLimits, table_problem
from tests.pico import run_here
from tests.solve.helpers import SIDECAR

PAIRS = [("gqa_8", "mlp_1024"), ("gqa_8", "mlp_512"), ("no_op", "mlp_512"), ("no_op", "no_op")]
LAYERS, MIB = 5, 2**20


def write_tables(folder: Path, seed: int, *, runtime: bool = True) -> np.ndarray:
    """Random tables; returns (memory MiB, runtime ms, damage) as (3, layers, pairs)."""
    rng = np.random.default_rng(seed)
    values = np.stack(
        [
            rng.integers(1, 100, (LAYERS, len(PAIRS))).astype(float),
            rng.integers(1, 1000, (LAYERS, len(PAIRS))) / 4,
            rng.uniform(0, 1, (LAYERS, len(PAIRS))),
        ]
    )
    rows = [
        (layer, n, attention, ffn)
        for layer in range(LAYERS)
        for n, (attention, ffn) in enumerate(PAIRS)
    ]
    BlockCosts(
        rows=tuple(
            BlockCost(
                first_layer=layer, last_layer=layer, attention=a, ffn=f,
                memory_bytes=int(values[0, layer, n]) * MIB,
                runtime_us=values[1, layer, n] * 1e3 if runtime else None, parameters=10 * n,
            )
            for layer, n, a, f in rows
        ),
        outside=OutsideCost(memory_bytes=7 * MIB, runtime_us=3000.0, parameters=5),
        source="test", inputs={}, evidence="measured", gpu="test", dtype="fp8", batch=1,
        sequence_length=8, num_layers=LAYERS, parent=PAIRS[0],
    ).write(folder / "block_costs.csv")  # fmt: skip
    ScoreTable(
        [
            ScoreRow(
                first_layer=layer, last_layer=layer, attention=a, ffn=f, metric="kl",
                value=float(values[2, layer, n]), stderr=0.0, tokens=1,
            )
            for layer, n, a, f in rows
        ],
        SIDECAR,
    ).write(folder / "scores.csv")  # fmt: skip
    return values


def enumerated(values: np.ndarray) -> np.ndarray:
    """(3, architectures), with what stands outside the blocks."""
    every = np.array(list(itertools.product(range(len(PAIRS)), repeat=LAYERS)))
    return np.array(
        [table[np.arange(LAYERS), every].sum(axis=1) + out
         for table, out in zip(values, (7.0, 3.0, 0.0), strict=True)]
    )  # fmt: skip


@pytest.mark.parametrize("seed", range(8))
def test_the_answer_is_the_best_within_memory_and_runtime(tmp_path: Path, seed: int) -> None:
    memory, runtime, damage = enumerated(write_tables(tmp_path, seed))
    rng = np.random.default_rng(seed)
    most = np.floor(np.quantile(memory, rng.uniform(0.1, 0.8)))
    longest = np.quantile(runtime, rng.uniform(0.1, 0.8)) + 0.01
    asked = table_problem(
        tmp_path, TableLimits(memory_bytes=float(most) * MIB, runtime_us=float(longest) * 1e3)
    )
    best = damage[(memory <= most) & (runtime <= longest)].min()
    found = solve(asked.problem)
    assert found.status == "optimal"
    assert found.score == pytest.approx(best)
    usage = asked.usage(found)
    index = np.flatnonzero(np.isclose(damage, best))[0]
    assert usage["memory_mib"] == memory[index] <= most
    assert usage["runtime_ms"] == pytest.approx(runtime[index])


def test_the_fastest_within_a_damage_budget(tmp_path: Path) -> None:
    _, runtime, damage = enumerated(write_tables(tmp_path, 1))
    asked = table_problem(tmp_path, TableLimits(score=1.5), goal="latency")
    found = solve(asked.problem)
    assert found.objective == pytest.approx(1e3 * runtime[damage <= 1.5].min())


def test_the_parents_own_block_costs_what_the_table_says(tmp_path: Path) -> None:
    values = write_tables(tmp_path, 2)
    asked = table_problem(tmp_path, TableLimits(frozen=frozenset(range(LAYERS))))
    assert solve(asked.problem).score == pytest.approx(values[2, :, 0].sum())


def test_linear_limits_speak_of_the_blocks(tmp_path: Path) -> None:
    write_tables(tmp_path, 3)
    asked = table_problem(tmp_path, TableLimits(linear=('sum(attention == "no_op") == 5',)))
    assert all(block.attention == "no_op" for block in solve(asked.problem).spec.blocks)


def test_a_limit_on_runtime_needs_runtimes(tmp_path: Path) -> None:
    write_tables(tmp_path, 0, runtime=False)
    table_problem(tmp_path, TableLimits(memory_bytes=1e9))
    for limits, goal in ((TableLimits(runtime_us=1.0), "score"), (TableLimits(), "latency")):
        with pytest.raises(InputError, match="no runtimes"):
            table_problem(tmp_path, limits, goal=goal)


def test_a_block_without_a_score_is_named(tmp_path: Path) -> None:
    write_tables(tmp_path, 0)
    lines = (tmp_path / "scores.csv").read_text().splitlines()
    (tmp_path / "scores.csv").write_text("\n".join(lines[:-1]) + "\n")
    with pytest.raises(InputError, match="layer 4"):
        table_problem(tmp_path, TableLimits())


def test_the_impossible_says_what_is_reachable(tmp_path: Path) -> None:
    memory, _, _ = enumerated(write_tables(tmp_path, 0))
    with pytest.raises(InfeasibleError, match="at least") as caught:
        solve(table_problem(tmp_path, TableLimits(memory_bytes=8.0 * MIB)).problem)
    assert f"{memory.min() * MIB / 1e9:.3g}"[:4] in caught.value.message


def test_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_tables(tmp_path, 4)
    spec = tmp_path / "child.yaml"
    limits = ("--memory", "200MiB", "--runtime", "700ms")
    run_here("solve-tables", str(tmp_path), *limits, "--json", "--out", str(spec))
    shown = json.loads(capsys.readouterr().out)
    assert shown["status"] == "optimal"
    assert shown["usage"]["memory_mib"] <= 200
    assert shown["usage"]["runtime_ms"] <= 700
    assert shown["score"] == shown["bound"]
    run_here("explain", str(spec), "--problem", str(tmp_path), "--json")
    assert json.loads(capsys.readouterr().out)["score"] == pytest.approx(shown["score"])
    run_here("solve-tables", str(tmp_path), *limits)
    assert "MiB" in capsys.readouterr().out
