"""Throughput of files in the engine that serves them, in turn so that drift falls on all alike."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from puzzle_search.cost import Scenario
from puzzle_search.engines import LLAMA_CPP
from puzzle_search.engines.gguf_text import (
    ANSWER_SECONDS,
    CHUNK_TOKENS,
    START_SECONDS,
    GgufHeader,
)
from puzzle_search.engines.process import Request, Worker, worker_command
from puzzle_search.evaluate.figures import time_figures
from puzzle_search.evaluate.throughput import Throughput
from puzzle_search.progress import Progress


def measure_gguf_files(
    files: Sequence[Path],
    scenario: Scenario,
    *,
    batch: int | Sequence[int],
    iterations: int,
    warm_up: int = 1,
    python: str | None = None,
    progress: Progress | None = None,
) -> list[Throughput]:
    """Serve GGUF files in llama.cpp's server, all in memory, a batch of each in turn.

    Every prompt is read anew, and all prompts of a batch reach the server at once. Memory is what
    the server's process held at the most.

    Args:
        files: parent and children.
        scenario: prompt and output length.
        batch: prompts at once; or of each file.
        iterations: counted runs of each.
        warm_up: runs of each before those.
        python: interpreter that has xllamacpp; this one by default.
        progress: shows how far it is.

    Raises:
        InputError: a file is missing or no GGUF file, or llama.cpp cannot load or run it.
        MissingDependencyError: `gguf` or xllamacpp is absent.
    """
    batches = [batch] * len(files) if isinstance(batch, int) else batch
    requests = [
        Request(batch=many, input_len=scenario.input_len, output_len=scenario.output_len)
        for many in batches
    ]
    samples: list[list[tuple[float, float]]] = [[] for _ in files]
    with contextlib.ExitStack() as stack:
        logs = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        workers = [
            stack.enter_context(_worker(file, request, python, logs / f"{number}.log"))
            for number, (file, request) in enumerate(zip(files, requests, strict=True))
        ]
        progress = progress or Progress("bench")
        with progress.over((warm_up + iterations) * len(files)) as advance:
            for iteration in range(-warm_up, iterations):
                for worker, request, kept in zip(workers, requests, samples, strict=True):
                    steps = worker.run(request)
                    if iteration >= 0:
                        kept.append((steps[0][0], steps[-1][0] - steps[0][0]))
                    advance("warm-up" if iteration < 0 else f"iteration {iteration + 1}")
        memory = [worker.resident_bytes for worker in workers]
    return [
        _summary(kept, scenario, many, held_bytes)
        for kept, many, held_bytes in zip(samples, batches, memory, strict=True)
    ]


def _worker(file: Path, request: Request, python: str | None, log: Path) -> Worker:
    settings = {
        "max_batch": request.batch,
        "max_length": request.length,
        "chunk_tokens": CHUNK_TOKENS,
        "vocab_size": GgufHeader.read(file).vocab_size,
        "keep_prompts": False,
    }
    return Worker(
        LLAMA_CPP,
        worker_command(LLAMA_CPP, python),
        file,
        settings,
        log=log,
        start_seconds=START_SECONDS,
        answer_seconds=ANSWER_SECONDS,
    )


def _summary(
    samples: list[tuple[float, float]], scenario: Scenario, batch: int, held_bytes: int
) -> Throughput:
    first, rest = np.array(samples).T
    rates = batch * scenario.output_len / (first + rest)
    return Throughput(
        batch=batch,
        tokens_per_second=float(np.median(rates)),
        **time_figures(
            ttft_ms=first * 1e3,
            tpot_ms=rest * 1e3 / max(1, scenario.decode_steps),
            latency_ms=(first + rest) * 1e3,
        ),
        memory_bytes=held_bytes,
        peak_bytes=None,
        iterations=len(samples),
        p10=float(np.percentile(rates, 10)),
        p90=float(np.percentile(rates, 90)),
        samples=tuple(float(rate) for rate in rates),
    )
