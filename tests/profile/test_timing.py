"""Runs in turn, on a clock that the tests turn themselves."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from puzzle_search.errors import InputError
from puzzle_search.profile.sampling.timing import (
    SPREAD_LIMIT,
    Samples,
    TimedRun,
    cuda_events,
    prepare_run,
    time_in_turn,
    wall_clock,
)

CPU = torch.device("cpu")


def run_of(seconds: list[float], log: list[str] | None = None, name: str = "") -> TimedRun:
    """A run whose samples take these seconds, over and over."""
    taken = 0

    def stopwatch(_: object) -> float:
        nonlocal taken
        taken += 1
        if log is not None:
            log.append(name)
        return seconds[(taken - 1) % len(seconds)]

    return TimedRun(submit=lambda: None, stopwatch=stopwatch, copies=1)


def test_percentiles_are_those_of_eleven_in_a_row() -> None:
    samples = Samples(visits=((11, 1, 10, 2, 9, 3, 8, 4, 7, 5, 6),))
    assert (samples.p10_us, samples.median_us, samples.p90_us) == pytest.approx((2, 6, 10))
    assert samples.spread == pytest.approx(8 / 6)


def test_runs_take_turns() -> None:
    log: list[str] = []
    time_in_turn([run_of([1e-3], log, "a"), run_of([2e-3], log, "b")], seconds=0)
    assert log[:4] == ["a", "b", "a", "b"]
    assert log.count("a") == log.count("b")


def test_a_steady_run_rests_and_an_unsteady_one_goes_on_to_the_end() -> None:
    steady, unsteady = time_in_turn([run_of([1e-3]), run_of([1e-3, 2e-3])], seconds=60)
    assert steady.median_us == pytest.approx(1000)
    assert steady.spread <= SPREAD_LIMIT < unsteady.spread
    assert len(steady.us) < len(unsteady.us) == 100


@given(
    st.integers(1, 20).flatmap(
        lambda n: st.lists(st.lists(st.floats(1, 1e6), min_size=n, max_size=n), min_size=1)
    )
)
def test_percentiles_are_those_of_numpy_where_visits_are_equally_long(
    visits: list[list[float]],
) -> None:
    samples = Samples(visits=tuple(map(tuple, visits)))
    of = (samples.p10_us, samples.median_us, samples.p90_us)
    assert of == pytest.approx(np.percentile(np.concatenate(visits), [10, 50, 90]))


@given(st.lists(st.lists(st.integers(0, 100), min_size=1, max_size=9), min_size=1, max_size=5))
def test_percentiles_look_alike_from_below_and_from_above(visits: list[list[int]]) -> None:
    samples = Samples(visits=tuple(map(tuple, visits)))
    mirrored = Samples(visits=tuple(tuple(100 - us for us in visit) for visit in visits))
    assert samples.p10_us == pytest.approx(100 - mirrored.p90_us, abs=1e-6)
    assert samples.median_us == pytest.approx(100 - mirrored.median_us, abs=1e-6)


def test_every_visit_counts_alike_however_long_it_was() -> None:
    long = tuple(20.0 + n / 1000 for n in range(100))
    samples = Samples(visits=(long, (10.0,) * 7, (11.0,) * 7))
    assert samples.median_us == pytest.approx(11.0)
    assert samples.p90_us == pytest.approx(20.07, abs=0.01)
    assert len(samples.us) == 114


def test_when_time_is_up_the_fewest_rounds_are_done() -> None:
    [samples] = time_in_turn([run_of([1e-3, 2e-3])], seconds=0)
    assert len(samples.us) == 7


def test_a_sample_is_shared_out_to_passes_and_copies() -> None:
    run = TimedRun(submit=lambda: None, stopwatch=lambda _: 6e-3, copies=3, passes=4)
    assert run.sample_us() == pytest.approx(500)


def test_short_passes_are_timed_together() -> None:
    passed = []
    run = TimedRun(submit=lambda: passed.append(0), stopwatch=lambda work: work() or 1e-4, copies=1)
    run.choose_passes()
    assert run.passes == 20  # 2 ms
    passed.clear()
    run.sample_us()
    assert len(passed) == 20


def test_what_comes_before_a_pass_is_not_timed() -> None:
    order = []

    def stopwatch(work: Callable[[], object]) -> float:
        before = len(order)
        work()
        return 1e-3 * (len(order) - before)

    run = TimedRun(
        submit=lambda: order.append("pass"),
        stopwatch=stopwatch,
        copies=1,
        passes=2,
        before=lambda: order.append("before"),
    )
    assert run.sample_us() == pytest.approx(1000)
    assert order == ["before", "pass", "before", "pass"]


def test_a_run_is_warm_and_timed_by_the_wall_on_a_cpu() -> None:
    passed = []

    def work(copy: int) -> tuple[torch.Tensor, ...]:
        passed.append(copy)
        time.sleep(0.0004)
        return (torch.ones(1), torch.tensor([1]))

    run = prepare_run(
        [functools.partial(work, copy) for copy in range(3)], device=CPU, captured=True
    )
    assert passed[:2] == [0, 0]  # warm before it is timed
    passed.clear()
    assert 390 < run.sample_us() < 200_000
    assert len(passed) == run.passes
    assert passed == [(passed[0] + n) % 3 for n in range(run.passes)]  # the copies take turns


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_an_error(value: float) -> None:
    made = (torch.zeros(2), torch.tensor([1.0, value]))
    with pytest.raises(InputError, match="not finite"):
        prepare_run([lambda: made], device=CPU, captured=False)


def test_the_wall_clock_runs_in_seconds() -> None:
    begun = time.monotonic()
    seconds = wall_clock(lambda: time.sleep(0.02))
    assert 0.02 <= seconds <= time.monotonic() - begun + 1e-3


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("captured", [True, False])
def test_a_gpu_run_takes_as_long_as_its_copies_by_the_wall(captured: bool) -> None:
    device = torch.device("cuda")
    source = torch.ones(1 << 28, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)

    def work() -> tuple[torch.Tensor, ...]:
        target.copy_(source)
        return (source[:1].float(),)

    run = prepare_run([work] * 8, device=device, captured=captured)
    assert run.stopwatch is cuda_events
    [samples] = time_in_turn([run], seconds=1)
    torch.cuda.synchronize()
    begun = time.perf_counter()
    for _ in range(160):
        work()
    torch.cuda.synchronize()
    wall_us = 1e6 * (time.perf_counter() - begun) / 160
    assert samples.median_us == pytest.approx(wall_us, rel=0.2)
