"""Figures under the most load, on a machine whose times the test sets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from puzzle_search.cost import Scenario
from puzzle_search.evaluate import measure_max_load, open_engine
from puzzle_search.runtime import Engine, ServingDecoder, precision_on
from tests.model.pico import write_parent

CPU = torch.device("cpu")
SCENARIO = Scenario(input_len=5, output_len=4)


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> ServingDecoder:
    folder: Path = tmp_path_factory.mktemp("parent")
    write_parent(folder)
    return ServingDecoder.from_checkpoint(folder, precision_on("fp32", CPU), CPU)


class Machine:
    """Gives an engine a prefill of 3 s and a step of 0.5 s, and counts its work."""

    def __init__(self, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        self.prefilled: list[int] = []
        prefill, decode = engine.prefill, engine.decode

        def slow_prefill(slots: list[int], ids_BL: torch.Tensor, samplers: Any) -> torch.Tensor:
            self.now += 3.0
            self.prefilled.append(len(slots))
            return prefill(slots, ids_BL, samplers)

        def slow_decode() -> torch.Tensor:
            self.now += 0.5
            return decode()

        monkeypatch.setattr(engine, "prefill", slow_prefill)
        monkeypatch.setattr(engine, "decode", slow_decode)

    def __call__(self) -> float:
        return self.now


def test_waves_of_equal_requests(decoder: ServingDecoder, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = open_engine(decoder, SCENARIO, 2)
    machine = Machine(engine, monkeypatch)
    figures = measure_max_load(engine, SCENARIO, requests=6, clock=machine)
    # A warm-up of one request to each slot, then three waves of two: prefill, three steps.
    assert machine.prefilled == [2] * 4
    assert figures.requests == 6
    assert figures.batch == 2
    assert figures.tokens_per_second == pytest.approx(6 * 4 / (3 * (3.0 + 3 * 0.5)))
    assert (figures.ttft_ms, figures.ttft_p99_ms) == pytest.approx((3000, 3000))
    assert (figures.tpot_ms, figures.tpot_p99_ms) == pytest.approx((500, 500))
    assert (figures.latency_ms, figures.latency_p99_ms) == pytest.approx((4500, 4500))


def test_prompts_that_take_several_chunks(
    decoder: ServingDecoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine(decoder, slots=2, max_length=9, chunk_tokens=5)  # a prompt at a time
    machine = Machine(engine, monkeypatch)
    figures = measure_max_load(engine, SCENARIO, requests=2, clock=machine)
    assert machine.prefilled == [1] * 4
    # The second waits for the first's prefill and step: tokens of the first at 3.0, 3.5, then
    # behind the second's prefill at 7.0, 7.5; of the second at 6.5, 7.0, 7.5, 8.0.
    assert figures.ttft_ms == pytest.approx((3000 + 6500) / 2)
    assert figures.latency_ms == pytest.approx((7500 + 8000) / 2)
    assert figures.tokens_per_second == pytest.approx(8 / 8.0)
