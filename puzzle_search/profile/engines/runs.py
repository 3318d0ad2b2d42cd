"""Run the points of a variant's children through workers until their times are steady."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from puzzle_search.cost import Dtype
from puzzle_search.engines.process import OutOfMemoryError, Worker
from puzzle_search.errors import InputError
from puzzle_search.profile.engines.engine import ServingEngine
from puzzle_search.profile.engines.grid import EngineGrid
from puzzle_search.profile.engines.results import Results
from puzzle_search.profile.engines.slopes import (
    decode_samples,
    prefill_sample,
    quantiles,
    slope,
)
from puzzle_search.profile.engines.stacks import Stack
from puzzle_search.profile.points.point import Point

# The difference of two children spreads about so much wider than either.
_SPREAD_OF_SLOPE = 3


@dataclass(frozen=True, kw_only=True)
class Runner:
    """How children are run.

    Attributes:
        engine: what serves them.
        command: starts a worker.
        folder: children and logs are written below it.
        dtype: one that the engine serves.
        grid: where and how often.
        start_seconds: time for a worker to load a child and compile it.
        answer_seconds: time for a worker to run one batch.
    """

    engine: ServingEngine
    command: Sequence[str]
    folder: Path
    dtype: Dtype
    grid: EngineGrid
    start_seconds: float
    answer_seconds: float

    def measure(
        self, stack: Stack, blocks: int, results: Results, done: Callable[[str], None]
    ) -> bool:
        """Measure what is missing of the children of N and 2N; False if one does not fit.

        Args:
            stack: what they repeat.
            blocks: N.
            results: completed.
            done: called after every point of each child.

        Raises:
            InputError, MissingDependencyError: as `Worker`.
        """
        sizes = [2 * blocks, blocks]
        together = [sizes] if self.engine.side_by_side else [[size] for size in sizes]
        return all(self._measure(stack, group, results, done) for group in together)

    def _measure(
        self, stack: Stack, sizes: list[int], results: Results, done: Callable[[str], None]
    ) -> bool:
        def missing(point: Point) -> bool:
            return not all(results.has(stack, size, point) for size in sizes)

        points = list(filter(missing, self.grid.points(attends=stack.attends)))
        if any(results.too_large(stack, size) for size in sizes):
            return False
        while points:
            with contextlib.ExitStack() as open_workers:
                workers: dict[int, Worker] = {}
                for size in sizes:
                    try:
                        workers[size] = open_workers.enter_context(self._worker(stack, size))
                    except OutOfMemoryError as error:
                        results.add_too_large(stack, size, str(error))
                        return False
                    results.check_identity(workers[size].identity)
                points = self._measure_until_full(workers, stack, points, results, done)
        return True

    def _measure_until_full(
        self,
        workers: dict[int, Worker],
        stack: Stack,
        points: list[Point],
        results: Results,
        done: Callable[[str], None],
    ) -> list[Point]:
        """Measure points in order; what is left when a worker ran out of memory."""
        name = self.engine.installed.name
        kv_tokens = min(worker.identity["kv_tokens"] for worker in workers.values())
        block = max(worker.identity["kv_block_tokens"] for worker in workers.values())

        def skip(point: Point, why: str) -> None:
            for blocks in workers:
                if not results.has(stack, blocks, point):
                    results.add_skipped(stack, blocks, point, why)
                    done(f"{stack}: {point} skipped")

        for number, point in enumerate(points):
            begun = time.monotonic()
            requests = self.grid.requests(point)
            needed = max(r.batch * math.ceil(r.length / block) * block for r in requests)
            if needed > kv_tokens:
                skip(point, f"needs a cache of {needed} tokens, {name} has {kv_tokens}")
                continue
            try:
                samples = self._samples(list(workers.values()), point)
            except OutOfMemoryError as error:
                rest = points[number:]
                larger = [other for other in rest if other.holds(point)]
                for other in larger:
                    skip(other, f"out of memory: {error}")
                return [other for other in rest if other not in larger]
            if not all(samples):
                skip(point, f"{name} never decoded the whole batch at once")
                continue
            took_seconds = (time.monotonic() - begun) / len(workers)
            for blocks, seconds in zip(workers, samples, strict=True):
                if not results.has(stack, blocks, point):
                    results.add_seconds(stack, blocks, point, seconds, took_seconds)
                    done(f"{stack}: {point}")
        return []

    def _samples(self, workers: list[Worker], point: Point) -> list[list[float]]:
        """Seconds of each worker's steps, the workers run in turn."""
        requests = self.grid.requests(point)
        for worker in workers:
            for request in requests:
                worker.run(request)  # the first run of a shape compiles, tunes and fills caches
        samples: list[list[float]] = [[] for _ in workers]
        begun = time.monotonic()
        while not self._enough(samples, time.monotonic() - begun):
            for worker, kept in zip(workers, samples, strict=True):
                steps = [worker.run(request) for request in requests]
                if point.phase == "decode":
                    new = decode_samples(steps[0], point.batch)
                    if not new:
                        return [[] for _ in workers]
                    kept += new
                else:
                    whole, *history = map(prefill_sample, steps)
                    kept.append(whole - sum(history))
        return samples

    def _enough(self, samples: list[list[float]], seconds: float) -> bool:
        """Whether times are steady, or their difference is known where both are there."""
        taken = min(map(len, samples))
        if taken < self.grid.min_samples:
            return False
        if len(samples) == 2:
            twice, once = samples
            latency = slope(once, twice, blocks=1)
            known = latency.error_us <= self.grid.error_limit * latency.median_us
            return known or seconds > self.grid.max_seconds
        limit = self.grid.spread_limit / _SPREAD_OF_SLOPE
        steady = all(quantiles(kept, len(kept)).spread <= limit for kept in samples)
        return steady or taken >= self.grid.max_samples

    def _worker(self, stack: Stack, blocks: int) -> Worker:
        folder = self.folder / f"{stack.subblock}-{stack.name}-tp{stack.tp}-x{blocks}"
        self.engine.write(stack, blocks, self.dtype, folder)
        settings = self.engine.settings(self.dtype, self.grid)
        return Worker(
            self.engine.installed,
            self.command,
            folder,
            settings | {"vocab_size": stack.config.vocab_size},
            log=folder / "worker.log",
            start_seconds=self.start_seconds,
            answer_seconds=self.answer_seconds,
        )


def check_dtype(engine: ServingEngine, dtype: Dtype) -> None:
    """Check that an engine serves a precision.

    Raises:
        InputError: it does not, with the kernels that are measured here.
    """
    if dtype.name not in engine.dtypes:
        raise InputError(
            f"{engine.installed.name} is not profiled in {dtype.name}",
            remedy=f"use --dtype {' or '.join(engine.dtypes)}",
        )
