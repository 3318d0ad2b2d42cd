"""Rows of a profile from the times of children."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from puzzle_search.cost import LatencyRow
from puzzle_search.cost.measured.profile_rows import STEP, GroupRow, Part
from puzzle_search.profile.engines.grid import EngineGrid
from puzzle_search.profile.engines.results import Results
from puzzle_search.profile.engines.slopes import Latency, quantiles, rest_us, slope
from puzzle_search.profile.engines.stacks import Skipped, Stack
from puzzle_search.profile.points.point import Point

_LEAST_US = 0.001  # of a low quantile that noise takes below zero; rows are positive
_NOISE = "its time is lost in the noise; profile more blocks"


def latency_rows(
    stacks: dict[Stack, int], grid: EngineGrid, results: Results
) -> tuple[list[LatencyRow], Skipped]:
    """Rows of every variant and of what stands outside, and the points that gave none.

    Args:
        stacks: the repeats in the smaller child of each.
        grid: where it was measured.
        results: the times.
    """
    rows: list[LatencyRow] = []
    skipped: Skipped = []
    for group, (stack, blocks) in enumerate(stacks.items()):
        for point in grid.points(attends=stack.attends):
            pair = _pair(stack, blocks, point, results)
            beside_us = _beside_us(stack, point, stacks, grid, results)
            if pair is None:
                why = _why(stack, blocks, point, results)
            elif beside_us is None:
                why = f"{stack.beside} was not measured there"
            else:
                latency = slope(*pair, blocks).less(beside_us)
                if latency.is_above_zero:
                    part: Part = stack.subblock
                    rows.append(_row(part, stack.name, point, stack.tp, latency, grid, group))
                    continue
                why = _NOISE
            skipped.append({"point": f"{stack}: {point}", "why": why})
    for group, tp in enumerate(grid.tp_degrees, start=len(stacks)):
        for point, latency in _step_latencies(stacks, grid, results, tp):
            if latency.is_above_zero:
                rows.append(_row("outside", STEP, point, tp, latency, grid, group))
            else:
                skipped.append({"point": f"outside {STEP}, tp {tp}: {point}", "why": _NOISE})
    return rows, skipped


def group_rows(stacks: dict[Stack, int], grid: EngineGrid, results: Results) -> list[GroupRow]:
    """One group per variant, and one per TP degree for what stands outside.

    The state of the device is the engine's process's: it is not told.
    """
    took = [results.took_seconds.get(str(stack), 0.0) for stack in stacks]
    outside = [
        sum(results.took_seconds.get(str(s), 0.0) for s in stacks if s.tp == tp)
        for tp in grid.tp_degrees
    ]
    return [
        GroupRow(
            group=group,
            seconds=round(seconds, 3),
            sm_clock_mhz=None,
            memory_clock_mhz=None,
            temperature_c=None,
            power_watts=None,
            throttle="",
            other_processes=None,
        )
        for group, seconds in enumerate(took + outside)
    ]


def _beside_us(
    stack: Stack, point: Point, stacks: dict[Stack, int], grid: EngineGrid, results: Results
) -> float | None:
    """What of a block's time is the FFN's beside the variant; None where that was not measured."""
    if stack.beside is None:
        return 0.0
    same_rows = next(p for p in grid.points(attends=False) if p.rows == point.rows)
    blocks = stacks.get(stack.beside)
    pair = _pair(stack.beside, blocks, same_rows, results) if blocks else None
    return slope(*pair, blocks).median_us if blocks and pair else None


def _pair(
    stack: Stack, blocks: int, point: Point, results: Results
) -> tuple[list[float], list[float]] | None:
    once = results.seconds.get((str(stack), blocks, point))
    twice = results.seconds.get((str(stack), 2 * blocks, point))
    return (once, twice) if once and twice else None


def _why(stack: Stack, blocks: int, point: Point, results: Results) -> str:
    places = [(str(stack), 2 * blocks, point), (str(stack), blocks, point)]
    return next(results.skipped[place] for place in places if place in results.skipped)


def _step_latencies(
    stacks: dict[Stack, int], grid: EngineGrid, results: Results, tp: int
) -> Iterator[tuple[Point, Latency]]:
    """What is left without any block: embedding, head, sampling and the engine's own step.

    The children of every variant that attends have it in common. It is read where blocks take the
    least time: over the shortest context of each batch.
    """
    rests: dict[Point, list[np.ndarray]] = {}
    samples: dict[Point, int] = {}
    for stack, blocks in stacks.items():
        if stack.tp == tp and stack.attends:
            for point in _shortest(grid):
                pair = _pair(stack, blocks, point, results)
                if pair:
                    rests.setdefault(point, []).append(rest_us(*pair))
                    samples[point] = min(*map(len, pair), samples.get(point, len(pair[0])))
    for point, of_variants in rests.items():
        yield point, quantiles(np.concatenate(of_variants), samples[point])


def _shortest(grid: EngineGrid) -> list[Point]:
    shortest: dict[tuple[str, int], Point] = {}
    for point in grid.points(attends=True):
        if point.history == 0:
            shortest.setdefault((point.phase, point.batch), point)
    return list(shortest.values())


def _row(
    part: Part, name: str, point: Point, tp: int, latency: Latency, grid: EngineGrid, group: int
) -> LatencyRow:
    return LatencyRow(
        subblock=part,
        variant=name,
        phase=point.phase,
        batch=point.batch,
        tokens=point.tokens,
        context=point.context,
        tp=tp,
        latency_us=round(latency.median_us, 3),
        latency_us_p10=round(max(_LEAST_US, latency.p10_us), 3),
        latency_us_p90=round(latency.p90_us, 3),
        repeats=latency.samples,
        steady=latency.spread <= grid.spread_limit,
        group=group,
    )
