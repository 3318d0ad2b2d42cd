"""Rows of a profile from the times of children."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from puzzle_search.cost import LatencyRow
from puzzle_search.cost.measured.profile_rows import STEP, GroupRow, Part
from puzzle_search.profile.engines.vllm.children import Stack
from puzzle_search.profile.engines.vllm.grid import VllmGrid
from puzzle_search.profile.engines.vllm.results import Results
from puzzle_search.profile.engines.vllm.slopes import Latency, quantiles, rest_us, slope
from puzzle_search.profile.points.point import Point

Skipped = list[dict[str, str]]

_NOISE = "its time is lost in the noise; profile more blocks"


def latency_rows(
    stacks: dict[Stack, int], grid: VllmGrid, results: Results
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
        for point in grid.points(stack.subblock):
            pair = _pair(stack, blocks, point, results)
            latency = slope(*pair, blocks) if pair else None
            if latency and latency.p10_us > 0:
                part: Part = stack.subblock
                rows.append(_row(part, stack.name, point, stack.tp, latency, grid, group))
            else:
                why = _NOISE if latency else _why(stack, blocks, point, results)
                skipped.append({"point": f"{stack}: {point}", "why": why})
    for group, tp in enumerate(grid.tp_degrees, start=len(stacks)):
        for point, latency in _step_latencies(stacks, grid, results, tp):
            if latency.p10_us > 0:
                rows.append(_row("outside", STEP, point, tp, latency, grid, group))
            else:
                skipped.append({"point": f"outside {STEP}, tp {tp}: {point}", "why": _NOISE})
    return rows, skipped


def group_rows(stacks: dict[Stack, int], grid: VllmGrid, results: Results) -> list[GroupRow]:
    """One group per variant, and one per TP degree for what stands outside.

    The state of the device is vLLM's process's: it is not told.
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
    stacks: dict[Stack, int], grid: VllmGrid, results: Results, tp: int
) -> Iterator[tuple[Point, Latency]]:
    """What is left without any block: embedding, head, sampling and the engine's own step.

    The children of every attention variant have it in common. It is read where blocks take the
    least time: over the shortest context of each batch.
    """
    rests: dict[Point, list[np.ndarray]] = {}
    for stack, blocks in stacks.items():
        if stack.subblock == "attention" and stack.tp == tp:
            for point in _shortest(grid):
                pair = _pair(stack, blocks, point, results)
                if pair:
                    rests.setdefault(point, []).append(rest_us(*pair))
    for point, of_variants in rests.items():
        samples = min(len(rest) for rest in of_variants)
        yield point, quantiles(np.concatenate(of_variants), samples)


def _shortest(grid: VllmGrid) -> list[Point]:
    shortest: dict[tuple[str, int], Point] = {}
    for point in grid.points("attention"):
        if point.history == 0:
            shortest.setdefault((point.phase, point.batch), point)
    return list(shortest.values())


def _row(
    part: Part, name: str, point: Point, tp: int, latency: Latency, grid: VllmGrid, group: int
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
        latency_us_p10=round(latency.p10_us, 3),
        latency_us_p90=round(latency.p90_us, 3),
        repeats=latency.samples,
        steady=latency.spread <= grid.spread_limit,
        group=group,
    )
