"""Engine steps as the tests name them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from puzzle_search.cost import Scenario
from puzzle_search.cost.latency import LatencyModel
from puzzle_search.cost.serving import Serving, schedule
from puzzle_search.cost.step import Step


def step(
    phase: str, *, batch: ArrayLike, tp: int, tokens: ArrayLike = 1, context: Any = None
) -> Step:
    """One decode step of a batch over a context, or one step of whole prompts."""
    if phase == "decode":
        return Step.of(tp=tp, decoding=batch, decode_context=1 if context is None else context)
    return Step.of(tp=tp, prompts=batch, prompt_tokens=tokens, prompt_context=context)


def prefill_us(
    latency: LatencyModel,
    subblock: Any,
    variant: str,
    *,
    batch: ArrayLike,
    tokens: int,
    tp: int = 1,
    chunk_tokens: int = 100,
) -> np.ndarray:
    """Microseconds of the prompts of a static batch; the subblock ``outside`` is what is."""
    serving = Serving(mode="static", max_tokens=chunk_tokens)
    scenario = Scenario(input_len=tokens, output_len=1)
    batches = np.atleast_1d(np.asarray(batch, np.float64))
    total = np.zeros(len(batches))
    for share in schedule(serving, scenario, batches, tp):
        taken = share.before > 0
        if taken.any():
            ask = Step(
                **{
                    name: value if name == "tp" else value[taken]
                    for name, value in vars(share.step).items()
                }
            )
            us = np.zeros(taken.shape)
            us[taken] = (
                latency.outside_us(ask)
                if subblock == "outside"
                else latency.subblock_us(subblock, variant, ask)
            )
            total += (us * share.before).sum(axis=1)
    return total if np.ndim(batch) else total[0]
