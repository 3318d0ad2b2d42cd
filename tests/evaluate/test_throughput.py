"""Throughput figures from a clock that the test winds, and memory by formula."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from puzzle_search.cost import Scenario
from puzzle_search.errors import InputError
from puzzle_search.evaluate import measure_checkpoints, measure_throughput, open_engine
from puzzle_search.runtime import ServingDecoder, precision_on
from tests.model.pico import write_parent

HIDDEN, WIDTH, LAYERS, VOCABULARY, KV_HEADS, HEAD_DIM = 64, 512, 2, 96, 2, 16
SCENARIO = Scenario(input_len=5, output_len=7)
CPU = torch.device("cpu")
BYTES = {"fp32": (4, 4, 4), "bf16": (2, 2, 2), "fp8": (1, 2, 1)}  # matrices, the rest, KV


def load(folder: Path, *, tied: bool = False, dtype: str = "fp32") -> ServingDecoder:
    write_parent(folder, num_key_value_heads=KV_HEADS, tie_word_embeddings=tied)
    return ServingDecoder.from_checkpoint(folder, precision_on(dtype, CPU), CPU)


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> ServingDecoder:
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


def test_figures_of_two_engines_run_in_turn(decoder: ServingDecoder) -> None:
    warm_up = [(50.0, 50.0), (60.0, 60.0)]
    first = [(1.0, 6.0), (2.0, 12.0), (0.5, 3.0)]
    second = [(4.0, 4.0), (1.0, 1.0), (2.0, 2.0)]
    in_turn = [run for pair in zip(first, second, strict=True) for run in pair]
    clock = Clock(warm_up + in_turn)
    engines = [open_engine(decoder, SCENARIO, batch) for batch in (2, 3)]
    made = measure_throughput(engines, SCENARIO, iterations=3, clock=clock)
    assert clock.left == 0
    for figures, batch, runs in zip(made, (2, 3), (first, second), strict=True):
        rates = [batch * 7 / (prefill + decode) for prefill, decode in runs]
        assert figures.samples == pytest.approx(rates)
        assert (figures.batch, figures.iterations) == (batch, 3)
        assert figures.tokens_per_second == pytest.approx(sorted(rates)[1])
        assert figures.p10 == pytest.approx(np.quantile(rates, 0.1))
        assert figures.p90 == pytest.approx(np.quantile(rates, 0.9))
        prefills = [1000 * p for p, _ in runs]
        # The first output token comes from prefill: six steps for seven tokens.
        steps = [1000 * d / 6 for _, d in runs]
        latencies = [1000 * (p + d) for p, d in runs]
        for name, samples in (("ttft", prefills), ("tpot", steps), ("latency", latencies)):
            assert getattr(figures, f"{name}_ms") == pytest.approx(sorted(samples)[1])
            tail = np.quantile(samples, 0.99)
            assert getattr(figures, f"{name}_p99_ms") == pytest.approx(tail)
        assert figures.tokens_per_second_per_user == pytest.approx(1000 / sorted(steps)[1])
        assert figures.peak_bytes is None
    assert made[0].tokens_per_second == pytest.approx(2.0)
    assert made[1].ttft_ms == pytest.approx(2000.0)


@pytest.mark.parametrize(("apart", "runs"), [(0.0, 3), (0.1, 3), (8.0, 1)])
def test_runs_are_repeated_while_they_spread_by_more_than_they_differ(
    decoder: ServingDecoder, apart: float, runs: int
) -> None:
    noisy = [(2.0, 2.0), (2.0 + apart, 2.0), (3.0, 3.0), (3.0 + apart, 3.0)]
    clock = Clock(noisy * runs)
    engines = [open_engine(decoder, SCENARIO, 2) for _ in range(2)]
    made = measure_throughput(
        engines, SCENARIO, iterations=2, most_iterations=7, warm_up=0, clock=clock
    )
    assert clock.left == 0
    assert [figures.iterations for figures in made] == [2 * runs] * 2


def test_warm_up_runs_do_not_count(decoder: ServingDecoder) -> None:
    clock = Clock([(1.0, 1.0), (2.0, 2.0), (3.0, 4.0)])
    engines = [open_engine(decoder, SCENARIO, 2)]
    (figures,) = measure_throughput(engines, SCENARIO, iterations=1, warm_up=2, clock=clock)
    assert clock.left == 0
    assert figures.samples == pytest.approx([2 * 7 / 7.0])


def test_one_output_token_has_no_decode_step(decoder: ServingDecoder) -> None:
    clock = Clock([(1.0, 0.0), (2.0, 0.0)])
    scenario = Scenario(input_len=5, output_len=1)
    engines = [open_engine(decoder, scenario, 4)]
    (figures,) = measure_throughput(engines, scenario, iterations=1, clock=clock)
    assert figures.tokens_per_second == pytest.approx(4 / 2.0)
    assert figures.tpot_ms == 0
    assert figures.tokens_per_second_per_user is None


def test_steps_that_a_run_takes(decoder: ServingDecoder, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = open_engine(decoder, SCENARIO, 2)
    steps: list[tuple[int, ...]] = []
    prefill, decode = engine.prefill, engine.decode

    def watched_prefill(slots: range, ids_BL: torch.Tensor) -> torch.Tensor:
        steps.append(tuple(ids_BL.shape))
        return prefill(slots, ids_BL)

    def watched_decode() -> torch.Tensor:
        out = decode()
        steps.append(tuple(out.shape))
        return out

    monkeypatch.setattr(engine, "prefill", watched_prefill)
    monkeypatch.setattr(engine, "decode", watched_decode)
    measure_throughput([engine], SCENARIO, iterations=1, clock=Clock([(1.0, 1.0)] * 2))
    assert steps == ([(2, 5)] + [(2,)] * 6) * 2
    assert engine.lengths == [11, 11]


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dtype", BYTES)
def test_memory_is_weights_and_kv_cache(tmp_path: Path, tied: bool, dtype: str) -> None:
    model, batch = load(tmp_path, tied=tied, dtype=dtype), 3
    clock = Clock([(1.0, 1.0)] * 2)
    engines = [open_engine(model, SCENARIO, batch)]
    (figures,) = measure_throughput(engines, SCENARIO, iterations=1, clock=clock)
    attention = 2 * HIDDEN * HIDDEN + 2 * HIDDEN * KV_HEADS * HEAD_DIM
    matrices = LAYERS * (attention + 3 * HIDDEN * WIDTH)
    tables = (1 if tied else 2) * VOCABULARY * HIDDEN
    norms = (2 * LAYERS + 1) * HIDDEN
    kv = LAYERS * 2 * KV_HEADS * HEAD_DIM * batch * (5 + 7)
    matrix, vector, cached = BYTES[dtype]
    assert figures.memory_bytes == matrices * matrix + (tables + norms) * vector + kv * cached


def test_dict_leaves_out_the_samples(decoder: ServingDecoder) -> None:
    clock = Clock([(1.0, 1.0)] * 2)
    engines = [open_engine(decoder, SCENARIO, 1)]
    (figures,) = measure_throughput(engines, SCENARIO, iterations=1, clock=clock)
    assert "samples" not in figures.as_dict()
    assert figures.as_dict()["tokens_per_second"] == figures.samples[0]
    assert figures.as_dict()["tokens_per_second_per_user"] == pytest.approx(6.0)


def test_checkpoints_in_turn(tmp_path: Path) -> None:
    write_parent(tmp_path / "one")
    write_parent(tmp_path / "two", num_hidden_layers=3)
    clock = Clock([(9.0, 9.0)] * 2 + [(1.0, 1.0), (2.0, 5.0)])
    one, two = measure_checkpoints(
        [(tmp_path / "one", 2), (tmp_path / "two", 3)],
        SCENARIO,
        dtype="bf16",
        device=CPU,
        iterations=1,
        clock=clock,
    )
    assert one.samples == pytest.approx([2 * 7 / 2.0])
    assert two.samples == pytest.approx([3 * 7 / 7.0])
    assert two.memory_bytes > one.memory_bytes


def test_scenario_beyond_the_context(decoder: ServingDecoder) -> None:
    with pytest.raises(InputError, match=r"129 tokens exceed the 128"):
        open_engine(decoder, Scenario(input_len=100, output_len=29), 1)
