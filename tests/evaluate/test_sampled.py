"""Sampled throughput of an engine whose steps take a known time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from puzzle_search.cost import Scenario
from puzzle_search.evaluate.sampled import sample_throughput, sampled_contexts, step_seconds
from puzzle_search.runtime import Engine, ServingDecoder, precision_on
from tests.model.pico import write_parent

CPU = torch.device("cpu")


class TimedEngine(Engine):
    """Its work takes as long as a formula says, on a clock of its own."""

    now = 0.0

    def prefill(self, slots: Sequence[int], ids_BL: torch.Tensor) -> torch.Tensor:
        self.now += 1 + 0.1 * ids_BL.numel()
        return super().prefill(slots, ids_BL)

    def decode(self) -> torch.Tensor:
        self.now += 0.5 + 0.01 * (self.lengths[0] + 1)
        return super().decode()


def make_engine(folder: Path, **settings: int) -> TimedEngine:
    write_parent(folder)
    decoder = ServingDecoder.from_checkpoint(folder, precision_on("fp32", CPU), CPU)
    return TimedEngine(decoder, **settings)  # type: ignore[arg-type]


def test_all_chunks_and_steps_are_counted(tmp_path: Path) -> None:
    engine = make_engine(tmp_path, slots=7, max_length=60, chunk_tokens=30)
    scenario = Scenario(input_len=10, output_len=41)
    found = sample_throughput(engine, scenario, clock=lambda: engine.now, contexts=8)
    prefill = 2 * (1 + 0.1 * 30) + (1 + 0.1 * 10)  # three sequences twice, and one
    # Attended tokens rise by one a step, so midpoints give the mean of all 40 steps.
    steps = [0.5 + 0.01 * (10 + step + 1) for step in range(40)]
    assert found.ttft_ms == pytest.approx(prefill * 1e3)
    assert found.tpot_ms == pytest.approx(sum(steps) / 40 * 1e3, rel=0.01)
    total = prefill + sum(steps)
    assert found.tokens_per_second == pytest.approx(7 * 41 / total, rel=0.01)
    assert found.batch == 7
    assert len(found.step_ms) == 8


def test_an_output_of_one_token_has_no_steps(tmp_path: Path) -> None:
    engine = make_engine(tmp_path, slots=2, max_length=20)
    found = sample_throughput(
        engine, Scenario(input_len=10, output_len=1), clock=lambda: engine.now
    )
    assert found.tpot_ms == 0
    assert found.step_ms == {}
    assert found.tokens_per_second == pytest.approx(2 / (1 + 0.1 * 20))


def test_contexts_lie_all_along_the_output() -> None:
    assert sampled_contexts(Scenario(input_len=100, output_len=9), 4) == [101, 103, 105, 107]
    assert sampled_contexts(Scenario(input_len=100, output_len=3), 8) == [100, 101]


def test_a_step_on_top_of_a_context(tmp_path: Path) -> None:
    engine = make_engine(tmp_path, slots=2, max_length=50)
    assert step_seconds(engine, 33, lambda: engine.now) == pytest.approx(0.5 + 0.34)
