"""Throughput of one batch from a sample of its steps, for outputs too long to run whole.

Prefill is a repetition of equal chunks, and a decode step changes smoothly with its context: what
is run are some of the chunks, and some steps at contexts all along the output. The sum over the
whole batch is then arithmetic, so the result is measured step by step but not end to end.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from puzzle_search.cost import Scenario
from puzzle_search.cost.chunks import sequences_per_chunk
from puzzle_search.evaluate.throughput import random_prompts
from puzzle_search.runtime import Engine


@dataclass(frozen=True, kw_only=True)
class SampledThroughput:
    """A batch from prompt to last token, put together from sampled steps.

    Attributes:
        tokens_per_second: output tokens of the batch over its whole time.
        ttft_ms: prefill of the whole batch.
        tpot_ms: mean decode step.
        step_ms: median decode step at each sampled context.
    """

    batch: int
    tokens_per_second: float
    ttft_ms: float
    tpot_ms: float
    step_ms: dict[int, float]


def sample_throughput(
    engine: Engine,
    scenario: Scenario,
    *,
    clock: Callable[[], float],
    contexts: int = 8,
    repeats: int = 5,
) -> SampledThroughput:
    """Time some chunks of the prefill and some decode steps of an engine whose slots all work.

    Args:
        engine: with room for the scenario; what its slots hold is lost.
        scenario: prompt and output length.
        clock: seconds now, once all work submitted to the device has ended.
        contexts: how many along the output to take steps at: the midpoints of equal parts.
        repeats: counted runs of each chunk, and steps at each context.
    """
    engine.cache.randomise()
    prefill = _prefill_seconds(engine, scenario, clock, repeats)
    step = {
        context: step_seconds(engine, context, clock, repeats)
        for context in sampled_contexts(scenario, contexts)
    }
    decode = float(np.mean(list(step.values()))) if step else 0.0
    total = prefill + decode * scenario.decode_steps
    return SampledThroughput(
        batch=engine.slots,
        tokens_per_second=engine.slots * scenario.output_len / total,
        ttft_ms=prefill * 1e3,
        tpot_ms=decode * 1e3,
        step_ms={context: seconds * 1e3 for context, seconds in step.items()},
    )


def sampled_contexts(scenario: Scenario, contexts: int) -> list[int]:
    """Tokens before the step at the midpoint of each of so many parts of the output."""
    parts = min(contexts, scenario.decode_steps)
    middles = (np.arange(parts) + 0.5) * scenario.decode_steps / max(parts, 1)
    return [scenario.input_len + int(middle) for middle in middles]


def step_seconds(
    engine: Engine, context: int, clock: Callable[[], float], repeats: int = 5
) -> float:
    """Median seconds of a decode step of all slots on top of ``context`` tokens."""

    def step() -> None:
        engine.decode().tolist()

    def back() -> None:
        engine.seek(context)

    return _median_seconds(step, clock, repeats, before=back)


def _prefill_seconds(
    engine: Engine, scenario: Scenario, clock: Callable[[], float], repeats: int
) -> float:
    """Seconds for all slots: one group of sequences timed, times the number of groups."""
    group = min(engine.slots, sequences_per_chunk(scenario.input_len, engine.chunk_tokens))
    groups, rest = divmod(engine.slots, group)
    ids_BL = random_prompts(engine.decoder, group, scenario)
    total = 0.0
    for sequences, times in ((group, groups), (rest, 1)):
        if sequences:
            rows = range(sequences)

            def chunk(rows: range = rows) -> None:
                engine.prefill(rows, ids_BL[: len(rows)]).tolist()

            total += _median_seconds(chunk, clock, repeats) * times
    return total


def _median_seconds(
    run: Callable[[], None],
    clock: Callable[[], float],
    repeats: int,
    *,
    before: Callable[[], None] | None = None,
) -> float:
    """Median of so many runs after one that does not count; ``before`` each, untimed."""
    samples = []
    for repeat in range(repeats + 1):
        if before is not None:
            before()
        start = clock()
        run()
        if repeat:
            samples.append(clock() - start)
    return float(np.median(samples))
