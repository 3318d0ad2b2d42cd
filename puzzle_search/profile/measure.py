"""Measure every variant of a search space on a device, with random weights.

See docs/profiling.md for what is measured and how.
"""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from puzzle_search import __version__
from puzzle_search.arch import ParentConfig, SearchSpace
from puzzle_search.cost import Dtype, MemoryRow, Profile
from puzzle_search.cost.memory_check import check_memory
from puzzle_search.cost.profile_file import FORMAT
from puzzle_search.files import Journal, value_hash
from puzzle_search.profile.ceilings import best, measure_ceilings
from puzzle_search.profile.device import Device
from puzzle_search.profile.grid import ProfileGrid
from puzzle_search.profile.plan import Plan
from puzzle_search.profile.readings import Readings
from puzzle_search.profile.rig import Rig
from puzzle_search.profile.rows import latency_rows, memory_rows
from puzzle_search.profile.session import Session
from puzzle_search.progress import Progress
from puzzle_search.runtime import precision_on

ENGINE = "puzzle-search"


def measure_profile(
    config: ParentConfig,
    space: SearchSpace,
    device: Device,
    dtype: Dtype,
    grid: ProfileGrid,
    *,
    max_minutes: float = 8.0,
    journal: Journal | None = None,
    progress: Progress | None = None,
) -> Profile:
    """Measure every variant of a search space on a device, with random weights.

    Args:
        config: the parent.
        space: whose variants are measured.
        device: to measure on.
        dtype: serving precision.
        grid: what to cover.
        max_minutes: after which nothing is refined any more.
        journal: keeps what was measured, so that a killed profile goes on where it was.
        progress: shows how far it is.

    Raises:
        InputError: the device does not compute in the dtype, the model does not reach that far, a
            subblock gives numbers that are not finite, bytes are not those of the formula, or the
            journal is of something else.
    """
    grid.check(config)
    precision = precision_on(dtype.name, device.torch_device)
    made_from = {
        "config": value_hash(dict(config.raw)),
        "dtype": dtype.name,
        "device": device.identity,
        "package_version": __version__,
        "chunk_tokens": grid.chunk_tokens,
    }
    readings = Readings(journal, made_from)
    rig = Rig(config, device, precision)
    plan = Plan(config, space, rig, dtype, grid)
    crews = plan.crews()
    expected = [sum(one.search.expected for one in crew) for crew in crews]
    memory: list[MemoryRow] = []
    progress = progress or Progress("profile")
    with progress.over(sum(expected)) as advance, torch.inference_mode():
        told = _Told(advance, sum(expected))
        ceilings = measure_ceilings(precision, device.torch_device)
        session = Session(
            device,
            readings,
            deadline=time.monotonic() + 60 * max_minutes - readings.seconds,
            advance=told.advance,
        )
        for number, crew in enumerate(crews):
            series = session.open(crew)
            memory += memory_rows(plan.targets, series)
            check_memory(memory, config, dtype, Path("memory.csv"))
            session.measure(series, share=expected[number] / sum(expected[number:]))
            session.close(crew)
            rig.release()
        ceilings = best(ceilings, measure_ceilings(precision, device.torch_device))
        told.complete()
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
        "ceilings": ceilings,
        "skipped": plan.left_out + session.skipped,
        "interpolation": _summary([e for one in plan.series for e in one.search.errors]),
    }
    return Profile(latency_rows(plan.targets, readings), memory, readings.groups, sidecar)


class _Told:
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
