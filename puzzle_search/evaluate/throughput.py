"""Throughput of models, measured in turn so that drift of the machine falls on all alike."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from puzzle_search.cost import Scenario
from puzzle_search.model import HeterogeneousDecoder, KvCache
from puzzle_search.progress import Progress


@dataclass(frozen=True, kw_only=True)
class Throughput:
    """Medians over iterations of one batch run from prompt to last token.

    Attributes:
        tokens_per_second: output tokens of the batch over its whole time.
        p10, p90: the same, at the 10th and 90th percentile.
        ttft_ms: prefill.
        tpot_ms: mean decode step.
        memory_bytes: weights and KV cache as allocated.
    """

    batch: int
    iterations: int
    tokens_per_second: float
    p10: float
    p90: float
    ttft_ms: float
    tpot_ms: float
    memory_bytes: int
    samples: tuple[float, ...]

    def as_dict(self) -> dict[str, Any]:
        """All figures but the samples, by name."""
        return {name: value for name, value in vars(self).items() if name != "samples"}


@torch.inference_mode()
def measure_throughput(
    models: list[HeterogeneousDecoder],
    scenario: Scenario,
    batches: list[int],
    *,
    iterations: int,
    clock: Callable[[], float],
    progress: Progress | None = None,
) -> list[Throughput]:
    """Run every model at its batch size, in turn, ``iterations`` times after one warm-up.

    Args:
        models: decoders on one device.
        scenario: prompt and output length.
        batches: batch size of each model.
        iterations: counted runs of each.
        clock: seconds now, once all work submitted to the device has ended.
        progress: shows how far it is.

    Raises:
        InputError: the scenario exceeds the context of a model.
    """
    length = scenario.input_len + scenario.output_len
    caches = [
        model.new_cache(batch=batch, max_length=length)
        for model, batch in zip(models, batches, strict=True)
    ]
    prompts = [
        _prompt(model, batch, scenario) for model, batch in zip(models, batches, strict=True)
    ]
    samples: list[list[tuple[float, float]]] = [[] for _ in models]
    progress = progress or Progress("bench")
    with progress.over((iterations + 1) * len(models)) as advance:
        for iteration in range(iterations + 1):
            for model, cache, ids, kept in zip(models, caches, prompts, samples, strict=True):
                timing = _run(model, cache, ids, scenario, clock)
                if iteration:
                    kept.append(timing)
                advance(f"iteration {iteration}")
    return [
        _summary(model, cache, batch, kept, scenario)
        for model, cache, batch, kept in zip(models, caches, batches, samples, strict=True)
    ]


def _prompt(model: HeterogeneousDecoder, batch: int, scenario: Scenario) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    shape = (batch, scenario.input_len)
    ids = torch.randint(model.config.vocab_size, shape, generator=generator)
    return ids.to(model.embedding.weight.device)


def _run(
    model: HeterogeneousDecoder,
    cache: KvCache,
    ids: torch.Tensor,
    scenario: Scenario,
    clock: Callable[[], float],
) -> tuple[float, float]:
    """Seconds of prefill and of all decode steps."""
    cache.rewind(0)
    start = clock()
    step_ids = model.next_greedy(ids, cache)
    first = clock()
    for _ in range(scenario.decode_steps):
        step_ids = model.next_greedy(step_ids, cache)
    return first - start, clock() - first


def _summary(
    model: HeterogeneousDecoder,
    cache: KvCache,
    batch: int,
    samples: list[tuple[float, float]],
    scenario: Scenario,
) -> Throughput:
    prefill, decode = np.array(samples).T
    rates = batch * scenario.output_len / (prefill + decode)
    weights = {p.data_ptr(): p.nbytes for p in model.parameters()}
    return Throughput(
        batch=batch,
        iterations=len(samples),
        tokens_per_second=float(np.median(rates)),
        p10=float(np.percentile(rates, 10)),
        p90=float(np.percentile(rates, 90)),
        ttft_ms=float(np.median(prefill) * 1e3),
        tpot_ms=float(np.median(decode) / max(1, scenario.decode_steps) * 1e3),
        memory_bytes=sum(weights.values()) + cache.num_bytes,
        samples=tuple(float(rate) for rate in rates),
    )
