"""Measure series of points: the most urgent first, in groups, until all is told or time is up."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from puzzle_search.cost import GroupRow
from puzzle_search.profile.hardware.device import Device
from puzzle_search.profile.points.point import Point
from puzzle_search.profile.points.series import Series
from puzzle_search.profile.points.subjects import Subject
from puzzle_search.profile.sampling.readings import Measured, Readings
from puzzle_search.profile.sampling.refine import LATTICE_URGENCY, Place
from puzzle_search.profile.sampling.timing import Samples, TimedRun, time_in_turn

_GROUP_RUNS = 16  # that are timed in turn
_RUN_SECONDS = 0.5  # for a run that does not become steady
_VISITS = 3  # to a point that is not steady


@dataclass(frozen=True, kw_only=True)
class TimedGroup:
    """Points that were timed in turn."""

    row: GroupRow
    samples: Mapping[Measured, Samples]


class Session:
    """Measures on one device, and remembers what did not fit.

    Args:
        device: to measure on.
        readings: what is known already, and where new readings go.
        seconds: after which lattices are completed, but nothing refined.
    """

    def __init__(
        self,
        device: Device,
        readings: Readings,
        *,
        seconds: float,
    ) -> None:
        self.skipped: list[dict[str, str]] = []
        self._device = device
        self._readings = readings
        self._deadline = time.monotonic() + seconds

    def open(self, series: Sequence[Series]) -> list[Series]:
        """Make the weights that these series measure; the series whose weights fit."""
        lost = set()
        for subject in _subjects(series):
            try:
                subject.open()
            except torch.OutOfMemoryError:
                subject.close()
                torch.cuda.empty_cache()
                self._skip(subject.name)
                lost.add(subject.key)
        return [one for one in series if one.subject.key not in lost]

    def close(self, series: Sequence[Series]) -> None:
        """Give the memory of those weights back."""
        for subject in _subjects(series):
            subject.close()

    def measure(self, series: Sequence[Series]) -> Iterator[TimedGroup]:
        """Measure what these series want, group by group.

        Half of the time is for lattices and their refinement. Points that are not steady are then
        visited again, since a machine that drifts shows it between visits, not within one; what
        time that leaves is for refinement.

        Args:
            series: of subjects that are open.
        """
        now = time.monotonic()
        yield from self._search(series, now + max(0.0, self._deadline - now) / 2)
        yield from self._revisit(series)
        yield from self._search(series, self._deadline)

    def _search(self, series: Sequence[Series], deadline: float) -> Iterator[TimedGroup]:
        """Complete lattices, and refine them until the deadline."""
        while True:
            self._recall(series)
            wanted = self._wanted(series)
            if time.monotonic() >= deadline:
                wanted = [entry for entry in wanted if entry[0] >= LATTICE_URGENCY]
            if not wanted:
                return
            group = [(one, place) for _, one, place in wanted[:_GROUP_RUNS]]
            expected = max(len(group), sum(one.search.expected for one in series))
            yield from self._measure_group(group, _run_seconds(deadline, expected))

    def _revisit(self, series: Sequence[Series]) -> Iterator[TimedGroup]:
        """Measure again what is not steady, what was visited least first."""

        def order(asked: tuple[Series, Place]) -> tuple[Any, ...]:
            one, place = asked
            visits = len(self._readings.known(one.measured(place)).samples.visits)
            return visits, *_alike(one.point(place))

        for _ in range(_VISITS - 1):
            restless = sorted(
                (
                    (one, place)
                    for one in series
                    for place in one.search.places
                    if not self._readings.known(one.measured(place)).steady
                ),
                key=order,
            )
            for first in range(0, len(restless), _GROUP_RUNS):
                if time.monotonic() >= self._deadline:
                    return
                group = restless[first : first + _GROUP_RUNS]
                seconds = _run_seconds(self._deadline, len(restless))
                yield from self._measure_group(group, seconds)

    def _recall(self, series: Sequence[Series]) -> None:
        """Answer from the readings as far as they go."""
        for one in series:
            answered = True
            while answered:
                answered = False
                for place in one.search.wanted():
                    reading = self._readings.get(one.measured(place))
                    if reading is not None:
                        one.search.take(place, reading.samples.median_us, reading.samples.spread)
                        answered = True

    def _wanted(self, series: Sequence[Series]) -> list[tuple[float, Series, Place]]:
        """Places by urgency; alike ones of different subjects side by side, to be timed in turn."""
        wanted = [
            (urgency, one, place)
            for one in series
            for place, urgency in one.search.wanted().items()
        ]
        return sorted(wanted, key=lambda entry: (-entry[0], *_alike(entry[1].point(entry[2]))))

    def _measure_group(
        self, group: list[tuple[Series, Place]], run_seconds: float
    ) -> Iterator[TimedGroup]:
        begun = time.monotonic()
        on_gpu = self._device.torch_device.type == "cuda"
        pool = torch.cuda.graph_pool_handle() if on_gpu else None
        runs: dict[Measured, TimedRun] = {}
        # The largest first: the others find room in the memory that it took.
        for one, place in sorted(group, key=_needed, reverse=True):
            measured = one.measured(place)
            try:
                runs[measured] = one.subject.run(one.part, measured.point, pool)
            except torch.OutOfMemoryError:
                torch.cuda.empty_cache()
                one.search.lose(place)
                self._skip(f"{one.subject.name}: {measured.point}")
        if not runs:
            return
        samples = time_in_turn(list(runs.values()), seconds=run_seconds * len(runs))
        for run in runs.values():
            run.submit()
        state = self._device.state()  # while that work goes on
        row = GroupRow(
            group=self._readings.next_group,
            seconds=round(time.monotonic() - begun, 3),
            **vars(state),
        )
        timed = TimedGroup(row=row, samples=dict(zip(runs, samples, strict=True)))
        self._readings.add(timed.row, timed.samples)
        yield timed

    def _skip(self, point: str) -> None:
        self.skipped.append({"point": point, "why": "out of memory"})
        print(f"profile: out of memory, skipped: {point}", file=sys.stderr, flush=True)


def _subjects(series: Sequence[Series]) -> list[Subject]:
    return list({one.subject.key: one.subject for one in series}.values())


def _run_seconds(deadline: float, runs: int) -> float:
    return min(_RUN_SECONDS, max(0.0, deadline - time.monotonic()) / runs)


def _needed(asked: tuple[Series, Place]) -> tuple[int, int]:
    """Numbers of keys and values, and of rows, that a point needs."""
    series, place = asked
    point = series.point(place)
    return series.subject.kv_numbers(point), point.rows


def _alike(point: Point) -> tuple[Any, ...]:
    """Steps of as many new tokens lie together: what a model adds up is timed in turn."""
    return point.phase, point.rows, point.batch * point.context, point.batch
