"""Run the points of one child through a worker until their times are steady."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from puzzle_search.cost import Dtype
from puzzle_search.errors import InputError
from puzzle_search.profile.engines.vllm.children import Stack
from puzzle_search.profile.engines.vllm.grid import VllmGrid
from puzzle_search.profile.engines.vllm.process import OutOfMemoryError, Worker
from puzzle_search.profile.engines.vllm.results import Results
from puzzle_search.profile.engines.vllm.slopes import decode_samples, prefill_sample, quantiles
from puzzle_search.profile.points.point import Point

# The last block of every sequence's cache is part empty; vLLM's blocks hold at most so many tokens.
_CACHE_BLOCK_TOKENS = 64
# The difference of two children spreads about so much wider than either.
_SPREAD_OF_SLOPE = 3
_ENGINE_DTYPES: dict[str, dict[str, str]] = {
    "bf16": {"dtype": "bfloat16"},
    "fp8": {"dtype": "bfloat16", "quantization": "fp8", "kv_cache_dtype": "fp8"},
}


@dataclass(frozen=True, kw_only=True)
class Runner:
    """How children are run.

    Attributes:
        command: starts a worker.
        folder: children and logs are written below it.
        dtype: ``bf16`` or ``fp8``.
        grid: where and how often.
        start_seconds: time for a worker to load a child and compile it.
        answer_seconds: time for a worker to run one batch.
    """

    command: Sequence[str]
    folder: Path
    dtype: Dtype
    grid: VllmGrid
    start_seconds: float
    answer_seconds: float

    def measure(
        self, stack: Stack, blocks: int, results: Results, done: Callable[[str], None]
    ) -> bool:
        """Measure what is missing of a child; False if it does not fit into memory.

        Args:
            stack: what it repeats.
            blocks: how often.
            results: completed.
            done: called after every point.

        Raises:
            InputError, MissingDependencyError: as `Worker`.
        """
        points = [p for p in self.grid.points(stack.subblock) if not results.has(stack, blocks, p)]
        if results.too_large(stack, blocks):
            return False
        while points:
            try:
                worker = self._worker(stack, blocks)
            except OutOfMemoryError as error:
                results.add_too_large(stack, blocks, str(error))
                return False
            with worker:
                results.check_identity(worker.identity)
                points = self._measure_until_full(worker, stack, blocks, points, results, done)
        return True

    def _measure_until_full(
        self,
        worker: Worker,
        stack: Stack,
        blocks: int,
        points: list[Point],
        results: Results,
        done: Callable[[str], None],
    ) -> list[Point]:
        """Measure points in order; what is left when the worker ran out of memory."""
        for number, point in enumerate(points):
            begun = time.monotonic()
            needed = max(
                r.batch * (r.length + _CACHE_BLOCK_TOKENS) for r in self.grid.requests(point)
            )
            if needed > worker.identity["kv_tokens"]:
                why = f"needs a cache of {needed} tokens, vLLM has {worker.identity['kv_tokens']}"
                results.add_skipped(stack, blocks, point, why)
                done(f"{stack}: {point} skipped")
                continue
            try:
                seconds = self._samples(worker, point)
            except OutOfMemoryError as error:
                rest = points[number:]
                larger = [other for other in rest if other.holds(point)]
                for other in larger:
                    results.add_skipped(stack, blocks, other, f"out of memory: {error}")
                    done(f"{stack}: {other} skipped")
                return [other for other in rest if other not in larger]
            if seconds:
                took_seconds = time.monotonic() - begun
                results.add_seconds(stack, blocks, point, seconds, took_seconds)
            else:
                why = "vLLM never decoded the whole batch at once"
                results.add_skipped(stack, blocks, point, why)
            done(f"{stack}: {point}")
        return []

    def _samples(self, worker: Worker, point: Point) -> list[float]:
        requests = self.grid.requests(point)
        samples: list[float] = []
        if point.phase == "prefill":
            for request in requests:
                worker.run(request)  # the first run of a shape compiles and tunes
        while len(samples) < self.grid.max_samples:
            steps = [worker.run(request) for request in requests]
            if point.phase == "decode":
                new = decode_samples(steps[0], point.batch)
                if not new:
                    return []
                samples += new
            else:
                whole, *history = map(prefill_sample, steps)
                samples.append(whole - sum(history))
            limit = self.grid.spread_limit / _SPREAD_OF_SLOPE
            enough = len(samples) >= self.grid.min_samples
            if enough and quantiles(samples, len(samples)).spread <= limit:
                break
        return samples

    def _worker(self, stack: Stack, blocks: int) -> Worker:
        name = f"{stack.subblock}-{stack.name}-tp{stack.tp}-x{blocks}"
        stack.write(self.folder / name, blocks)
        engine = _ENGINE_DTYPES[self.dtype.name] | {
            "load_format": "dummy",
            "trust_remote_code": True,  # of the class that this package wrote into the folder
            "skip_tokenizer_init": True,
            "generation_config": "vllm",
            "enable_prefix_caching": False,
            "enable_chunked_prefill": True,
            # A step then takes the host's time and the device's, not the larger of the two, so
            # that what repeats add is the device's.
            "async_scheduling": False,
            "max_model_len": self.grid.max_length,
            "max_num_seqs": self.grid.max_batch,
            "max_num_batched_tokens": self.grid.chunk_tokens,
        }
        return Worker(
            self.command,
            self.folder / name,
            {"engine": engine, "vocab_size": stack.config.vocab_size},
            start_seconds=self.start_seconds,
            answer_seconds=self.answer_seconds,
        )


def check_dtype(dtype: Dtype) -> None:
    """Check that vLLM serves a precision.

    Raises:
        InputError: it does not, with the attention kernels that are measured here.
    """
    if dtype.name not in _ENGINE_DTYPES:
        raise InputError(
            f"vLLM is not profiled in {dtype.name}",
            remedy=f"use --dtype {' or '.join(_ENGINE_DTYPES)}",
        )
