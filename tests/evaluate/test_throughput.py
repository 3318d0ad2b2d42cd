"""Throughput figures from a clock that the test winds, and memory by formula."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from puzzle_search.checkpoint import load_decoder
from puzzle_search.cost import Scenario
from puzzle_search.errors import InputError
from puzzle_search.evaluate import measure_throughput
from puzzle_search.model import HeterogeneousDecoder
from tests.model.pico import write_parent

HIDDEN, WIDTH, LAYERS, VOCABULARY, KV_HEADS, HEAD_DIM = 64, 512, 2, 96, 2, 16
SCENARIO = Scenario(input_len=5, output_len=7)


def load(
    folder: Path, *, tied: bool = False, dtype: torch.dtype = torch.float32
) -> HeterogeneousDecoder:
    write_parent(folder, num_key_value_heads=KV_HEADS, tie_word_embeddings=tied)
    return load_decoder(folder, dtype=dtype)


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> HeterogeneousDecoder:
    return load(tmp_path_factory.mktemp("parent"))


class Clock:
    """Gives prefill and decode times that were set, run by run; each run reads it three times."""

    def __init__(self, runs: list[tuple[float, float]]) -> None:
        self._ticks = self._wind(runs)
        self.left = 3 * len(runs)

    @staticmethod
    def _wind(runs: list[tuple[float, float]]) -> Iterator[float]:
        now = 100.0
        for prefill, decode in runs:
            for step in (3.0, prefill, decode):  # time between runs does not count
                now += step
                yield now

    def __call__(self) -> float:
        self.left -= 1
        return next(self._ticks)


def test_figures_of_two_models_run_in_turn(decoder: HeterogeneousDecoder) -> None:
    warm_up = [(50.0, 50.0), (60.0, 60.0)]
    first = [(1.0, 6.0), (2.0, 12.0), (0.5, 3.0)]
    second = [(4.0, 4.0), (1.0, 1.0), (2.0, 2.0)]
    in_turn = [run for pair in zip(first, second, strict=True) for run in pair]
    clock = Clock(warm_up + in_turn)
    made = measure_throughput([decoder, decoder], SCENARIO, [2, 3], iterations=3, clock=clock)
    assert clock.left == 0
    for figures, batch, runs in zip(made, (2, 3), (first, second), strict=True):
        rates = [batch * 7 / (prefill + decode) for prefill, decode in runs]
        assert figures.samples == pytest.approx(rates)
        assert (figures.batch, figures.iterations) == (batch, 3)
        assert figures.tokens_per_second == pytest.approx(sorted(rates)[1])
        assert figures.p10 == pytest.approx(np.quantile(rates, 0.1))
        assert figures.p90 == pytest.approx(np.quantile(rates, 0.9))
        assert figures.ttft_ms == pytest.approx(1000 * sorted(p for p, _ in runs)[1])
        # The first output token comes from prefill: six steps for seven tokens.
        assert figures.tpot_ms == pytest.approx(1000 * sorted(d for _, d in runs)[1] / 6)
    assert made[0].tokens_per_second == pytest.approx(2.0)
    assert made[1].ttft_ms == pytest.approx(2000.0)


def test_one_output_token_has_no_decode_step(decoder: HeterogeneousDecoder) -> None:
    clock = Clock([(1.0, 0.0), (2.0, 0.0)])
    scenario = Scenario(input_len=5, output_len=1)
    (figures,) = measure_throughput([decoder], scenario, [4], iterations=1, clock=clock)
    assert figures.tokens_per_second == pytest.approx(4 / 2.0)
    assert figures.tpot_ms == 0


def test_tokens_that_a_run_computes(
    decoder: HeterogeneousDecoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes = []
    step = decoder.next_greedy

    def watched(ids: torch.Tensor, cache: object) -> torch.Tensor:
        shapes.append(tuple(ids.shape))
        return step(ids, cache)

    monkeypatch.setattr(decoder, "next_greedy", watched)
    clock = Clock([(1.0, 1.0)] * 2)
    measure_throughput([decoder], SCENARIO, [2], iterations=1, clock=clock)
    assert shapes == ([(2, 5)] + [(2, 1)] * 6) * 2


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_memory_is_weights_and_kv_cache(tmp_path: Path, tied: bool, dtype: torch.dtype) -> None:
    model, batch = load(tmp_path, tied=tied, dtype=dtype), 3
    clock = Clock([(1.0, 1.0)] * 2)
    (figures,) = measure_throughput([model], SCENARIO, [batch], iterations=1, clock=clock)
    attention = 2 * HIDDEN * HIDDEN + 2 * HIDDEN * KV_HEADS * HEAD_DIM
    block = attention + 3 * HIDDEN * WIDTH + 2 * HIDDEN
    tables = (1 if tied else 2) * VOCABULARY * HIDDEN
    weights = LAYERS * block + tables + HIDDEN
    kv = LAYERS * 2 * KV_HEADS * HEAD_DIM * batch * (5 + 7)
    assert figures.memory_bytes == (weights + kv) * dtype.itemsize


def test_dict_leaves_out_the_samples(decoder: HeterogeneousDecoder) -> None:
    clock = Clock([(1.0, 1.0)] * 2)
    (figures,) = measure_throughput([decoder], SCENARIO, [1], iterations=1, clock=clock)
    assert "samples" not in figures.as_dict()
    assert figures.as_dict()["tokens_per_second"] == figures.samples[0]


def test_scenario_beyond_the_context(decoder: HeterogeneousDecoder) -> None:
    scenario = Scenario(input_len=100, output_len=29)
    with pytest.raises(InputError, match=r"129 tokens exceed the 128"):
        measure_throughput([decoder], scenario, [1], iterations=1, clock=Clock([]))
