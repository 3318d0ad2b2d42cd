"""A job of a profile: series whose weights lie in memory together, measured on one device."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from puzzle_search.arch import ParentConfig, SearchSpace
from puzzle_search.cost import Dtype, LatencyRow, MemoryRow
from puzzle_search.cost.measured.memory_check import check_memory
from puzzle_search.errors import InputError
from puzzle_search.profile.hardware.ceilings import best, measure_ceilings
from puzzle_search.profile.hardware.device import Device
from puzzle_search.profile.points.grid import ProfileGrid
from puzzle_search.profile.points.plan import ProfilePlan
from puzzle_search.profile.points.step_inputs import StepInputs
from puzzle_search.profile.rows import latency_rows, memory_rows
from puzzle_search.profile.sampling.readings import Measured, Reading, Readings
from puzzle_search.profile.sampling.session import Session, TimedGroup
from puzzle_search.runtime import precision_on


@dataclass(frozen=True, kw_only=True)
class ProfileJob:
    """What one portion of a profile is measured from.

    Attributes:
        config: the parent.
        space: whose variants are measured.
        dtype: serving precision.
        grid: what to cover.
        device: to measure on; where the job runs elsewhere, the one of that name there.
        identity: of the device that the profile is of.
        parts: least number of portions that the plan is divided into.
        number: of this portion.
        seconds: after which nothing is refined any more.
        known: what was measured before.
        groups: that it was measured in.
    """

    config: ParentConfig
    space: SearchSpace
    dtype: Dtype
    grid: ProfileGrid
    device: Device
    identity: Mapping[str, Any]
    parts: int
    number: int
    seconds: float
    known: Mapping[Measured, Reading]
    groups: int


@dataclass(frozen=True, kw_only=True)
class JobResult:
    """What a portion's rows and its device say; rows count groups from those known before on.

    Attributes:
        rows: latencies.
        memory: bytes.
        ceilings: rates of the device.
        skipped: points that were not measured, and why.
        errors: relative interpolation errors at held-out points.
    """

    rows: list[LatencyRow]
    memory: list[MemoryRow]
    ceilings: dict[str, Any]
    skipped: list[dict[str, str]]
    errors: list[float]


def measure_job(job: ProfileJob) -> Iterator[tuple[int, TimedGroup | JobResult]]:
    """Groups as they are timed, then the result, each with the number of the portion.

    Raises:
        InputError: the device here is not like the one that the profile is of, a subblock gives
            numbers that are not finite, or bytes are not those of the formula.
    """
    _check_alike(job.device.identity, job.identity)
    precision = precision_on(job.dtype.name, job.device.torch_device)
    inputs = StepInputs(job.config, job.device, precision)
    plan = ProfilePlan(job.config, job.space, inputs, job.dtype, job.grid)
    portion = plan.portions(job.parts)[job.number]
    targets = plan.targets_of(portion)
    readings = Readings.of(job.known, groups=job.groups)
    session = Session(job.device, readings, seconds=job.seconds)
    with torch.inference_mode():
        ceilings = measure_ceilings(precision, job.device.torch_device)
        series = session.open(portion)
        memory = memory_rows(targets, series)
        check_memory(memory, job.config, job.dtype, Path("memory.csv"))
        for group in session.measure(series):
            yield job.number, group
        session.close(portion)
        inputs.release()
        ceilings = best(ceilings, measure_ceilings(precision, job.device.torch_device))
    result = JobResult(
        rows=latency_rows(targets, readings),
        memory=memory,
        ceilings=ceilings,
        skipped=session.skipped,
        errors=[error for one in portion for error in one.search.errors],
    )
    yield job.number, result


def _check_alike(here: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    """That a profile mixes no devices; another of the same kind is none."""
    for key in asked:
        if key != "uuid_sha256" and here.get(key) != asked[key]:
            raise InputError(
                f"a worker's device differs from the one that is profiled: its {key} is "
                f"{here.get(key)!r}, not {asked[key]!r}",
                remedy="give the cluster workers of one kind with the same software, and for CPUs "
                "set OMP_NUM_THREADS",
            )
