"""Measure a profile through an installed serving engine, in processes of its own.

A variant is served in two children with random weights, of N and of 2N repeats and nothing else:
the difference of their times by N is one repeat, as the engine runs it, and what N repeats do not
explain is the engine's step with embedding, head and sampling.
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from puzzle_search import __version__
from puzzle_search.arch import ParentConfig, SearchSpace
from puzzle_search.cost import Dtype, LatencyRow, Profile
from puzzle_search.cost.measured.hardware_limit import hardware_limit, least_latency_us
from puzzle_search.cost.measured.profile_file import FORMAT
from puzzle_search.engines.process import worker_command
from puzzle_search.errors import InputError
from puzzle_search.files import Journal, value_hash
from puzzle_search.profile.engines.engine import ServingEngine
from puzzle_search.profile.engines.grid import EngineGrid
from puzzle_search.profile.engines.results import Results
from puzzle_search.profile.engines.rows import group_rows, latency_rows
from puzzle_search.profile.engines.runs import Runner, check_dtype
from puzzle_search.profile.engines.stacks import Skipped, Stack
from puzzle_search.profile.points.point import Point
from puzzle_search.progress import Progress

# What engines take of a device by default.
_MEMORY_SHARE = 0.9


def measure_engine_profile(
    engine: ServingEngine,
    config: ParentConfig,
    space: SearchSpace,
    dtype: Dtype,
    grid: EngineGrid,
    *,
    journal: Journal,
    command: Sequence[str] | None = None,
    progress: Progress | None = None,
    start_seconds: float = 1800,
    answer_seconds: float = 900,
) -> Profile:
    """Measure every variant of a search space that an engine loads.

    Variants and points that give no number stand in the sidecar under ``skipped``, with the reason.

    Args:
        engine: what serves them.
        config: the parent; only its ``config.json`` is needed.
        space: the variants.
        dtype: one that the engine serves.
        grid: where to measure.
        journal: keeps every time as it is measured; an interrupted profile goes on from it.
            Children and logs of workers are written into a folder ``children`` beside it.
        command: starts a worker, see `worker_command`; by default in this interpreter.
        progress: told of every point.
        start_seconds: time for a worker to load a child and compile it.
        answer_seconds: time for a worker to run one batch.

    Raises:
        MissingDependencyError: the worker's interpreter lacks the engine.
        InputError: it loads no child of this parent, does not serve the dtype or the grid, or a
            worker ended, hung or answered nonsense; or the journal is in use.
    """
    check_dtype(engine, dtype)
    grid.check(config)
    wanted, skipped = engine.stacks(config, space, grid.tp_degrees)
    with journal.held():
        results = Results(journal, _made_from(config, wanted, dtype, grid))
        runner = Runner(
            engine=engine,
            command=command or worker_command(engine.installed),
            folder=journal.path.with_name("children"),
            dtype=dtype,
            grid=grid,
            start_seconds=start_seconds,
            answer_seconds=answer_seconds,
        )
        blocks, too_large = _measure_all(runner, wanted, results, progress or Progress("profile"))
    found, lost = latency_rows(blocks, grid, results)
    if not found:
        raise InputError(
            f"{journal.path}: no point of any variant could be measured",
            remedy="profile a smaller grid, or fewer blocks",
        )
    sidecar = _sidecar(config, dtype, grid, results.identity, skipped + too_large + lost)
    limit = hardware_limit(sidecar)
    rows = [r for r in found if r.latency_us >= least_latency_us(r, config, dtype, limit)[0]]
    sidecar["skipped"] += [_faster_than_hardware(row) for row in found if row not in rows]
    return Profile(rows, [], group_rows(blocks, grid, results), sidecar)


def _measure_all(
    runner: Runner, wanted: list[Stack], results: Results, progress: Progress
) -> tuple[dict[Stack, int], Skipped]:
    """Measure both children of every variant; the repeats in the smaller, and what did not fit."""
    points = {stack: list(runner.grid.points(attends=stack.attends)) for stack in wanted}
    total = 2 * sum(map(len, points.values()))
    blocks: dict[Stack, int] = {}
    skipped: Skipped = []
    with progress.over(total, min(total, len(results.seconds) + len(results.skipped))) as done:
        for stack in wanted:
            repeats = runner.grid.blocks
            while repeats and not runner.measure(stack, repeats, results, done):
                repeats //= 2
            if repeats:
                blocks[stack] = repeats
            else:
                reason = results.too_large(stack, 2) or results.too_large(stack, 1)
                why = f"out of memory: {reason}"
                skipped.append({"point": str(stack), "why": why})
    return blocks, skipped


def _faster_than_hardware(row: LatencyRow) -> dict[str, str]:
    point = Point(phase=row.phase, batch=row.batch, tokens=row.tokens, context=row.context)
    return {
        "point": f"{row.subblock} {row.variant}, tp {row.tp}: {point}",
        "why": f"{row.latency_us:g} us is faster than the hardware: weights came from a cache, or "
        "the noise is larger than a repeat; profile more blocks",
    }


def _made_from(
    config: ParentConfig, wanted: list[Stack], dtype: Dtype, grid: EngineGrid
) -> dict[str, Any]:
    return {
        "model": value_hash(dict(config.raw)),
        "variants": [str(stack) for stack in wanted],
        "dtype": dtype.name,
        "grid": value_hash(asdict(grid)),
    }


def _sidecar(
    config: ParentConfig, dtype: Dtype, grid: EngineGrid, identity: dict[str, Any], skipped: Skipped
) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "package_version": __version__,
        "evidence": "measured",
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "device": identity["device"],
        "engine": identity["engine"],
        "dtype": dtype.name,
        "model": config.name,
        "parent_config": dict(config.raw),
        "memory_limit_bytes": int(identity["device"]["memory_bytes"] * _MEMORY_SHARE),
        "prefill_chunk_tokens": grid.chunk_tokens,
        "ceilings": {"copy_bytes_per_second": None, "matmul_flops_per_second": {}},
        "skipped": skipped,
        "interpolation": {"points": 0, "median": None, "p90": None, "worst": None},
    }
