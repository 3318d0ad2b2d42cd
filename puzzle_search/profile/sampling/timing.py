"""Time runs in turn, round after round, until their spread is small.

In every round each run is timed once, so that drift of the clock falls on all alike.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from puzzle_search.errors import InputError

SPREAD_LIMIT = 0.02
"""(p90 - p10) / median of a row that counts as steady."""

_WARM_UP_PASSES = 2
_MIN_ROUNDS = 7
_MAX_ROUNDS = 100
# Passes are timed together until they take so long: launches and clocks are coarser than kernels.
_SAMPLE_SECONDS = 2e-3
_MAX_PASSES = 200

Work = Callable[[], Iterable[torch.Tensor]]
"""Something on the device; returns what it made."""

Stopwatch = Callable[[Callable[[], object]], float]
"""Seconds that the device takes for some work, idle before and after."""


@dataclass(kw_only=True)
class TimedRun:
    """Something that is timed again and again.

    Attributes:
        submit: one pass; on a GPU it may return before the work is done.
        stopwatch: how it is timed.
        copies: identical parts of one pass, to each of which its time is shared out.
        passes: passes of one sample.
        before: what is done before each pass, untimed; None where passes follow each other.
        inputs: what a captured pass reads, and must therefore live as long as it.
    """

    submit: Callable[[], object]
    stopwatch: Stopwatch
    copies: int
    passes: int = 1
    before: Callable[[], object] | None = None
    inputs: object = None

    def choose_passes(self) -> None:
        """Take as many passes as make a sample long enough."""
        once = self.stopwatch(self.submit)
        self.passes = min(_MAX_PASSES, max(1, math.ceil(_SAMPLE_SECONDS / max(once, 1e-9))))

    def sample_us(self) -> float:
        """Microseconds of one copy."""
        return 1e6 * self._sample_seconds() / (self.passes * self.copies)

    def _sample_seconds(self) -> float:
        if self.before is None:
            return self.stopwatch(self._repeat)
        seconds = 0.0
        for _ in range(self.passes):
            self.before()
            seconds += self.stopwatch(self.submit)
        return seconds

    def _repeat(self) -> None:
        for _ in range(self.passes):
            self.submit()


@dataclass(frozen=True, kw_only=True)
class Samples:
    """What a run took, in microseconds of one copy.

    Every visit counts alike, however many samples it took: what lies between visits moves them
    more than what lies between the samples of one.

    Attributes:
        visits: samples of each time that it was measured.
    """

    visits: tuple[tuple[float, ...], ...]

    @property
    def us(self) -> tuple[float, ...]:
        """All of them."""
        return tuple(itertools.chain(*self.visits))

    @property
    def median_us(self) -> float:
        """The time that a row states."""
        return self._percentile(50)

    @property
    def p10_us(self) -> float:
        """The 10th percentile."""
        return self._percentile(10)

    @property
    def p90_us(self) -> float:
        """The 90th percentile."""
        return self._percentile(90)

    @property
    def spread(self) -> float:
        """(p90 - p10) / median."""
        return (self.p90_us - self.p10_us) / self.median_us

    def _percentile(self, q: int) -> float:
        weights = np.concatenate([np.full(len(visit), 1 / len(visit)) for visit in self.visits])
        # Equal samples share their weights, or their order would count.
        _, alike, count = np.unique(self.us, return_inverse=True, return_counts=True)
        weights = (np.bincount(alike, weights) / count)[alike]
        order = np.argsort(self.us)
        # The middle of each sample's share: alike from below and from above.
        places = np.cumsum(weights[order]) - weights[order] / 2
        place = places[0] + q / 100 * (places[-1] - places[0])
        return float(np.interp(place, places, np.array(self.us)[order]))


def wall_clock(work: Callable[[], object]) -> float:
    """For a CPU, and for work that waits for its own end."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def cuda_events(work: Callable[[], object]) -> float:
    """Between two events on the current stream."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    work()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / 1e3


def device_stopwatch(device: torch.device) -> Stopwatch:
    """How passes are timed on a device."""
    return cuda_events if device.type == "cuda" else wall_clock


def prepare_run(
    copies: Sequence[Work],
    *,
    device: torch.device,
    captured: bool,
    pool: Any = None,
) -> TimedRun:
    """Warm up, look at what comes out, and capture where asked.

    A captured pass runs every copy. Otherwise a pass is one copy, and the next pass the next one:
    each comes as cold as all the others leave it, however few are timed in a sample.

    Args:
        copies: the same work on memory of their own; each returns what it made.
        device: that they run on.
        captured: whether a GPU replays them as a CUDA graph, as it does decode steps.
        pool: memory pool that captures share.

    Raises:
        InputError: what comes out is not finite.
    """
    stopwatch = device_stopwatch(device)
    if device.type == "cuda" and captured:
        submit = _capture(copies, pool)
        run = TimedRun(submit=submit, stopwatch=stopwatch, copies=len(copies), inputs=copies)
    else:
        _warm_up(copies[:1])
        turn = itertools.cycle(copies)
        run = TimedRun(submit=lambda: next(turn)(), stopwatch=stopwatch, copies=1)
    run.choose_passes()
    return run


def _capture(copies: Sequence[Work], pool: Any) -> Callable[[], object]:
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        _warm_up(copies)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool):
        for copy in copies:
            copy()
    graph.replay()
    return graph.replay


def _warm_up(copies: Sequence[Work]) -> None:
    for _ in range(_WARM_UP_PASSES):
        for copy in copies:
            made = copy()
    _check_finite(made)


def _check_finite(made: Iterable[torch.Tensor]) -> None:
    for tensor in made:
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise InputError(
                "a subblock with finite weights and inputs gave numbers that are not finite",
                remedy="its kernels are wrong here: update torch and the driver, or use another "
                "dtype, and report it",
            )


def time_in_turn(runs: list[TimedRun], *, seconds: float) -> list[Samples]:
    """Time every run once a round, until all are steady or time is up.

    A run whose spread is within the limit rests while others go on.

    Args:
        runs: that are ready.
        seconds: after which no new round begins, once the fewest are done.
    """
    us: list[list[float]] = [[] for _ in runs]
    going = list(range(len(runs)))
    begun, rounds = time.perf_counter(), 0
    while going and rounds < _MAX_ROUNDS:
        for index in going:
            us[index].append(runs[index].sample_us())
        rounds += 1
        if rounds < _MIN_ROUNDS:
            continue
        if time.perf_counter() - begun >= seconds:
            break
        going = [i for i in going if Samples(visits=(tuple(us[i]),)).spread > SPREAD_LIMIT]
    return [Samples(visits=(tuple(values),)) for values in us]
