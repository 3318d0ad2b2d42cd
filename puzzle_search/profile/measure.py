"""Measure every variant of a search space on a device, with random weights.

See docs/profiling.md for what is measured and how.
"""

from __future__ import annotations

import contextlib
import datetime
import functools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from puzzle_search import __version__
from puzzle_search.arch import ParentConfig, SearchSpace
from puzzle_search.cost import Dtype, LatencyRow, MemoryRow, Profile
from puzzle_search.cost.measured.profile_file import FORMAT
from puzzle_search.executor import Executor, InProcess
from puzzle_search.files import Journal, value_hash
from puzzle_search.profile.hardware.ceilings import best
from puzzle_search.profile.hardware.device import Device
from puzzle_search.profile.job import JobResult, ProfileJob, measure_job
from puzzle_search.profile.points.grid import ProfileGrid
from puzzle_search.profile.points.plan import ProfilePlan
from puzzle_search.profile.points.step_inputs import StepInputs
from puzzle_search.profile.sampling.readings import Measured, Readings
from puzzle_search.profile.sampling.session import TimedGroup
from puzzle_search.progress import Progress
from puzzle_search.runtime import precision_on

ENGINE = "puzzle-search"

DEFAULT_MINUTES = {"cuda": 8.0, "cpu": 0.75}
"""What a profile may take on a device; its lattices are completed in any case."""


def measure_profile(
    config: ParentConfig,
    space: SearchSpace,
    device: Device,
    dtype: Dtype,
    grid: ProfileGrid,
    *,
    max_minutes: float | None = None,
    journal: Journal | None = None,
    executor: Executor | None = None,
    jobs: int = 1,
    progress: Progress | None = None,
) -> Profile:
    """Measure every variant of a search space on a device, with random weights.

    Args:
        config: the parent.
        space: whose variants are measured.
        device: to measure on.
        dtype: serving precision.
        grid: what to cover.
        max_minutes: after which nothing is refined any more; elsewhere than in this process, of
            each job. By default `DEFAULT_MINUTES`.
        journal: keeps what was measured, so that a killed profile goes on where it was.
        executor: where jobs run; in this process by default. Others must give each job a device
            of the same kind for itself: what runs beside it would be measured with it.
        jobs: parts that the work is divided into, or more where memory asks for it. What is in
            one part is timed in turn.
        progress: shows how far it is.

    Raises:
        InputError: the device does not compute in the dtype, the model does not reach that far, a
            subblock gives numbers that are not finite, bytes are not those of the formula, a job
            ran on a device of another kind, or the journal is of something else
            or in use.
    """
    grid.check(config)
    executor = executor or InProcess()
    precision = precision_on(dtype.name, device.torch_device)
    made_from = {
        "config": value_hash(dict(config.raw)),
        "dtype": dtype.name,
        "device": device.identity,
        "package_version": __version__,
        "chunk_tokens": grid.chunk_tokens,
    }
    with journal.held() if journal else contextlib.nullcontext():
        readings = Readings(journal, made_from)
        plan = ProfilePlan(config, space, StepInputs(config, device, precision), dtype, grid)
        portions = plan.portions(jobs)
        expected = [sum(one.search.expected for one in portion) for portion in portions]
        if max_minutes is None:
            max_minutes = DEFAULT_MINUTES[device.torch_device.type]
        seconds = max(0.0, 60 * max_minutes - readings.seconds)
        work = [
            ProfileJob(
                config=config,
                space=space,
                dtype=dtype,
                grid=grid,
                device=device,
                identity=device.identity,
                parts=jobs,
                number=number,
                seconds=seconds
                * (of_portion / sum(expected) if isinstance(executor, InProcess) else 1),
                known=readings.of_subjects({one.subject.key for one in portions[number]}),
                groups=len(readings.groups),
            )
            for number, of_portion in enumerate(expected)
        ]
        gathered = _Gathered(readings, {one.subject.key: one.subject.name for one in plan.series})
        with (progress or Progress("profile")).over(sum(expected)) as advance:
            reported = _Reported(advance, sum(expected))
            for measured in readings.all:
                reported.advance(gathered.name(measured))
            for number, found in executor.run(measure_job, work):
                for measured in gathered.take(number, found):
                    reported.advance(gathered.name(measured))
            reported.complete()
    results = gathered.results
    order = {(one.subblock, one.variant, one.tp): n for n, one in enumerate(plan.targets)}

    def place(row: LatencyRow | MemoryRow) -> int:
        return order[row.subblock, row.variant, row.tp]

    sidecar = {
        "format": FORMAT,
        "package_version": __version__,
        "evidence": "measured",
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "device": device.identity,
        "engine": ENGINE,
        "dtype": dtype.name,
        "model": config.name,
        "parent_config": dict(config.raw),
        "memory_limit_bytes": device.memory_limit_bytes,
        "prefill_chunk_tokens": grid.chunk_tokens,
        "ceilings": functools.reduce(best, [result.ceilings for result in results]),
        "skipped": plan.left_out + [point for result in results for point in result.skipped],
        "interpolation": _summary([error for result in results for error in result.errors]),
    }
    return Profile(
        sorted((row for result in results for row in result.rows), key=place),
        sorted((row for result in results for row in result.memory), key=place),
        readings.groups,
        sidecar,
    )


class _Gathered:
    """What jobs gave so far, their groups numbered as they came.

    Args:
        readings: where groups are kept.
        names: of subjects by their keys.
    """

    def __init__(self, readings: Readings, names: Mapping[str, str]) -> None:
        self._readings = readings
        self._names = names
        self._groups: dict[tuple[int, int], int] = {}
        self._results: dict[int, JobResult] = {}

    def name(self, measured: Measured) -> str:
        """What a reading is of, for people."""
        return f"{self._names.get(measured.subject, measured.subject)}: {measured.point}"

    def take(self, portion: int, found: TimedGroup | JobResult) -> Iterable[Measured]:
        """Keep what the job of a portion gave; what of it had not been measured before."""
        if isinstance(found, JobResult):
            self._results[portion] = found
            return ()
        group = self._groups[portion, found.row.group] = self._readings.next_group
        new = found.samples.keys() - self._readings.all.keys()
        self._readings.add(replace(found.row, group=group), found.samples)
        return new

    @property
    def results(self) -> list[JobResult]:
        """Of every portion, in order, with the groups as they are numbered here."""
        return [
            replace(result, rows=[self._numbered(portion, row) for row in result.rows])
            for portion, result in sorted(self._results.items())
        ]

    def _numbered(self, portion: int, row: LatencyRow) -> LatencyRow:
        return replace(row, group=self._groups.get((portion, row.group), row.group))


class _Reported:
    """Progress over a number of points that is known roughly: never past the end, then all of it.

    Args:
        advance: of the bar.
        total: of the bar.
    """

    def __init__(self, advance: Callable[[str], None], total: int) -> None:
        self._advance, self._left = advance, total

    def advance(self, unit: str) -> None:
        """One more point."""
        if self._left:
            self._left -= 1
            self._advance(unit)

    def complete(self) -> None:
        """No more points come."""
        while self._left:
            self.advance("nothing left to refine")


def _summary(errors: list[float]) -> dict[str, Any]:
    """Of relative interpolation errors at held-out points."""
    if not errors:
        return {"points": 0, "median": None, "p90": None, "worst": None}
    median, p90, worst = (round(float(q), 5) for q in np.percentile(errors, [50, 90, 100]))
    return {"points": len(errors), "median": median, "p90": p90, "worst": worst}
