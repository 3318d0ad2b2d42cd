"""Throughput of engines, measured in turn so that drift of the machine falls on all alike."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from puzzle_search.cost import Scenario
from puzzle_search.cost.chunks import sequences_per_chunk
from puzzle_search.evaluate.figures import ServingFigures, spread_remarks, time_figures
from puzzle_search.progress import Progress
from puzzle_search.runtime import Engine, ServingDecoder, precision_on


@dataclass(frozen=True, kw_only=True)
class Throughput(ServingFigures):
    """One batch run from prompt to last token, over and over; ``tokens_per_second`` is a median.

    Attributes:
        iterations: counted runs.
        p10, p90: tokens per second at these percentiles.
        samples: tokens per second of each run.
    """

    iterations: int
    p10: float
    p90: float
    samples: tuple[float, ...]


def open_engine(decoder: ServingDecoder, scenario: Scenario, batch: int) -> Engine:
    """An engine of ``batch`` slots of the scenario's length, its FP8 scales found.

    Raises:
        InputError: the scenario exceeds the context of the model.
    """
    engine = Engine(decoder, slots=batch, max_length=scenario.tokens)
    chunk = sequences_per_chunk(scenario.input_len, engine.chunk_tokens)
    engine.calibrate(random_prompts(decoder, min(batch, chunk), scenario))
    return engine


def random_prompts(decoder: ServingDecoder, count: int, scenario: Scenario) -> torch.Tensor:
    """The same random tokens every time, (count, input length), on the decoder's device."""
    generator = torch.Generator().manual_seed(0)
    shape = (count, scenario.input_len)
    ids_BL = torch.randint(decoder.config.vocab_size, shape, generator=generator)
    return ids_BL.to(decoder.device)


def measure_throughput(
    engines: Sequence[Engine],
    scenario: Scenario,
    *,
    iterations: int,
    most_iterations: int | None = None,
    warm_up: int = 1,
    clock: Callable[[], float],
    progress: Progress | None = None,
) -> list[Throughput]:
    """Fill the slots of every engine and run them to the last token, in turn.

    Again, while the runs of some spread by more than they differ from the first.

    Args:
        engines: on one device, as `open_engine` makes them.
        scenario: prompt and output length.
        iterations: counted runs of each.
        most_iterations: where repeating ends; None does not repeat.
        warm_up: runs of each before those.
        clock: seconds now, once all work submitted to the device has ended.
        progress: shows how far it is.
    """
    prompts = [random_prompts(engine.decoder, engine.slots, scenario) for engine in engines]
    samples: list[list[tuple[float, float]]] = [[] for _ in engines]
    work = [Workspace(engine.decoder.device) for engine in engines]
    progress = progress or Progress("bench")
    first, last = -warm_up, iterations
    while True:
        with progress.over((last - first) * len(engines)) as advance:
            for iteration in range(first, last):
                for engine, ids_BL, kept, space in zip(
                    engines, prompts, samples, work, strict=True
                ):
                    with space.watched():
                        timing = _run(engine, ids_BL, scenario, clock)
                    if iteration >= 0:
                        kept.append(timing)
                    advance("warm-up" if iteration < 0 else f"iteration {iteration + 1}")
        figures = [
            _summary(engine, kept, scenario, space)
            for engine, kept, space in zip(engines, samples, work, strict=True)
        ]
        told = {str(number): entry.as_dict() for number, entry in enumerate(figures)}
        first, last = last, last + iterations
        if last > (most_iterations or iterations) or not any(spread_remarks(told, "")):
            return figures


def measure_checkpoints(
    batches: Sequence[tuple[str | Path, int]],
    scenario: Scenario,
    *,
    dtype: str,
    device: torch.device,
    iterations: int,
    clock: Callable[[], float],
    progress: Progress | None = None,
) -> list[Throughput]:
    """Serve parents and children from their folders, each at its batch size, in turn.

    Args:
        batches: checkpoint folders with batch sizes; all are in memory at once.
        scenario: prompt and output length.
        dtype: serving precision: fp32, bf16 or fp8.
        device: where.
        iterations: counted runs of each, after one warm-up.
        clock: seconds now, once all work submitted to the device has ended.
        progress: shows how far it is.

    Raises:
        InputError: a checkpoint is damaged, the scenario exceeds the context of a model, or the
            device does not compute in that precision.
    """
    precision = precision_on(dtype, device)
    engines = [
        open_engine(ServingDecoder.from_checkpoint(folder, precision, device), scenario, batch)
        for folder, batch in batches
    ]
    return measure_throughput(
        engines, scenario, iterations=iterations, clock=clock, progress=progress
    )


class Workspace:
    """The most that a run allocates on a GPU besides what stood before it."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._bytes = 0

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Within, allocations count."""
        if self._device.type != "cuda":
            yield
            return
        torch.cuda.reset_peak_memory_stats(self._device)
        standing = torch.cuda.memory_allocated(self._device)
        yield
        peak = torch.cuda.max_memory_allocated(self._device)
        self._bytes = max(self._bytes, peak - standing)

    def beside(self, standing_bytes: int) -> int | None:
        """The peak, where so many bytes stood before; None on a CPU."""
        return standing_bytes + self._bytes if self._device.type == "cuda" else None


def engine_bytes(engine: Engine) -> int:
    """Weights and KV cache as allocated."""
    return engine.decoder.weight_bytes + engine.cache_bytes


def _run(
    engine: Engine, ids_BL: torch.Tensor, scenario: Scenario, clock: Callable[[], float]
) -> tuple[float, float]:
    """Seconds of prefill and of all decode steps."""
    start = clock()
    engine.prefill(range(engine.slots), ids_BL)
    first = clock()
    for _ in range(scenario.decode_steps):
        engine.decode()
    return first - start, clock() - first


def _summary(
    engine: Engine, samples: list[tuple[float, float]], scenario: Scenario, space: Workspace
) -> Throughput:
    prefill, decode = np.array(samples).T
    rates = engine.slots * scenario.output_len / (prefill + decode)
    memory = engine_bytes(engine)
    return Throughput(
        batch=engine.slots,
        tokens_per_second=float(np.median(rates)),
        **time_figures(
            ttft_ms=prefill * 1e3,
            tpot_ms=decode * 1e3 / max(1, scenario.decode_steps),
            latency_ms=(prefill + decode) * 1e3,
        ),
        memory_bytes=memory,
        peak_bytes=space.beside(memory),
        iterations=len(samples),
        p10=float(np.percentile(rates, 10)),
        p90=float(np.percentile(rates, 90)),
        samples=tuple(float(rate) for rate in rates),
    )
