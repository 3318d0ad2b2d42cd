"""From readings to the rows of a profile."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch

from puzzle_search.cost import LatencyRow, MemoryRow
from puzzle_search.cost.measured.interpolation import Curve
from puzzle_search.cost.measured.profile_rows import EMBEDDING, HEAD, STEP
from puzzle_search.profile.points.plan import ProfileTarget
from puzzle_search.profile.points.point import Point
from puzzle_search.profile.points.series import Series
from puzzle_search.profile.points.subjects import Allocated
from puzzle_search.profile.sampling.readings import Reading, Readings

_LEAST_US = 0.001  # of a step that costs no more than embedding and head; rows are positive


def latency_rows(targets: Iterable[ProfileTarget], readings: Readings) -> list[LatencyRow]:
    """One row for each place of each target's lattices."""
    return [
        _row(target, point, reading, contained_us(point))
        for target in targets
        for contained_us in (_contained_us(target.contained, readings),)
        for point, reading in _points(target.series, readings)
    ]


def memory_rows(targets: Iterable[ProfileTarget], open_series: Iterable[Series]) -> list[MemoryRow]:
    """Bytes of the targets whose weights are there, with the workspace of their largest step."""
    here = {id(one) for one in open_series}
    known: dict[tuple[str, str], tuple[Allocated, int]] = {}
    rows = []
    for target in targets:
        if target.variant == STEP or id(target.series[0]) not in here:
            continue
        subject, part = target.series[0].subject, target.series[0].part
        if (subject.key, part) not in known:
            known[subject.key, part] = _allocated(target.series)
        bytes_of, workspace_rows = known[subject.key, part]
        rows.append(
            MemoryRow(
                subblock=target.subblock,
                variant=target.variant,
                tp=target.tp,
                weight_bytes=bytes_of.weight_bytes,
                kv_bytes_per_token=bytes_of.kv_bytes_per_token,
                workspace_bytes=bytes_of.workspace_bytes,
                workspace_rows=workspace_rows,
            )
        )
    return rows


def _allocated(series: Iterable[Series]) -> tuple[Allocated, int]:
    """Bytes at the largest step that fits, and its tokens."""
    first, *_ = series = list(series)
    points = [one.point(place) for one in series for place in one.search.wanted()]
    for point in sorted(points, key=lambda point: (point.rows, -point.context), reverse=True):
        try:
            return first.subject.allocated(first.part, point), point.rows
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
    raise AssertionError("a stack was made, and not one step of it fits")


def _points(series: Iterable[Series], readings: Readings) -> Iterator[tuple[Point, Reading]]:
    for one in series:
        for place in one.search.places:
            yield one.point(place), readings.known(one.measured(place))


def _contained_us(series: Iterable[Series], readings: Readings) -> Callable[[Point], float]:
    """What a step spends in other rows: embedding by its tokens, head by its sequences."""
    curves = {
        one.part: Curve({p.rows: r.samples.median_us for p, r in _points([one], readings)})
        for one in series
    }

    def us(point: Point) -> float:
        places = {EMBEDDING: point.rows, HEAD: point.batch}
        return sum(float(curve.at(places[part])) for part, curve in curves.items())

    return us


def _row(target: ProfileTarget, point: Point, reading: Reading, contained_us: float) -> LatencyRow:
    samples = reading.samples
    median, p10, p90 = (
        round(max(_LEAST_US, us - contained_us), 3)
        for us in (samples.median_us, samples.p10_us, samples.p90_us)
    )
    return LatencyRow(
        subblock=target.subblock,
        variant=target.variant,
        phase=point.phase,
        batch=point.batch,
        tokens=point.tokens,
        context=point.context,
        tp=target.tp,
        latency_us=median,
        latency_us_p10=p10,
        latency_us_p90=p90,
        repeats=len(samples.us),
        steady=reading.steady,
        group=reading.group,
    )
