"""Fit what an engine adds to its kernels, from published throughput of whole models.

The kernels' constants are fitted first (`calibrate`); here one scalar on all of
them and a cost per step are chosen so that predicted throughput matches what was published.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

from puzzle_search.arch import (
    Gqa,
    ParentConfig,
    Subblock,
    embedding_parameters,
    parse_variant,
    subblock_parameters,
)
from puzzle_search.cost.modelled.analytic import AnalyticLatency
from puzzle_search.cost.modelled.constants import Provenance, StepConstants
from puzzle_search.cost.modelled.hardware import CostModel
from puzzle_search.cost.modelled.operators import BYTES_PER_VALUE
from puzzle_search.cost.scenario import Scenario
from puzzle_search.errors import InputError

_Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class PublishedThroughput:
    """One row of a published table: a model, given by its (attention, ffn) variants per layer."""

    model: str
    blocks: tuple[tuple[str, str], ...]
    scenario: Scenario
    tp: int
    tokens_per_second_per_gpu: float


@dataclass(frozen=True, kw_only=True)
class PredictedThroughput:
    """What the cost model says of a published row."""

    batch: int
    limit: str
    prefill_us: float
    decode_us: float
    tokens_per_second_per_gpu: float


def largest_batch(
    row: PublishedThroughput, config: ParentConfig, model: CostModel, *, dtype: str, max_batch: int
) -> tuple[int, str]:
    """Largest batch that fits in memory with the whole of each sequence cached, and what binds.

    Block matrices are stored in ``dtype``, the KV cache too; norms, embedding and head in bf16.

    Raises:
        InputError: not even one sequence fits.
    """
    value_bytes = BYTES_PER_VALUE[dtype]
    weight_bytes = 2.0 * embedding_parameters(config)
    kv_values_per_token = 0
    for attention, ffn in row.blocks:
        for variant in (parse_variant("attention", attention), parse_variant("ffn", ffn)):
            parameters = subblock_parameters(variant, config)
            norm = min(parameters, config.hidden_size)
            weight_bytes += value_bytes * (parameters - norm) + 2 * norm
            if isinstance(variant, Gqa):
                kv_values_per_token += 2 * -(-variant.kv_heads // row.tp) * config.head_dim
    free_bytes = model.memory_limit_bytes - weight_bytes / row.tp
    length = row.scenario.input_len + row.scenario.output_len
    fitting = int(free_bytes // (value_bytes * kv_values_per_token * length))
    if fitting < 1:
        raise InputError(
            f"{row.model} does not fit on {row.tp} {model.gpu} at {row.scenario}",
            remedy="use a larger tensor-parallel degree",
        )
    return (fitting, "memory") if fitting <= max_batch else (max_batch, "batch cap")


def predict(
    row: PublishedThroughput,
    config: ParentConfig,
    model: CostModel,
    *,
    engine: str = "trtllm",
    dtype: str = "fp8",
) -> PredictedThroughput:
    """Throughput at the largest batch: prefill of the whole batch, then every decode step."""
    max_batch = model.engine(engine).step.max_batch
    batch, limit = largest_batch(row, config, model, dtype=dtype, max_batch=max_batch)
    latency = AnalyticLatency(config, model, engine, dtype)
    n_in, n_out = row.scenario.input_len, row.scenario.output_len
    prefill_us = float(latency.outside_us("prefill", batch=batch, tokens=n_in, tp=row.tp))
    decode_us = n_out * float(latency.outside_us("decode", batch=batch, tokens=1, tp=row.tp))
    contexts = n_in + np.arange(1, n_out + 1)
    subblocks: tuple[tuple[Subblock, int], ...] = (("attention", 0), ("ffn", 1))
    for subblock, index in subblocks:
        names = [block[index] for block in row.blocks]
        for name in dict.fromkeys(names):
            shape: dict[str, Any] = {"batch": batch, "tp": row.tp}
            prefill = latency.subblock_us(
                subblock, name, "prefill", tokens=n_in, context=n_in, **shape
            )
            decode = latency.subblock_us(
                subblock, name, "decode", tokens=1, context=contexts, **shape
            )
            prefill_us += names.count(name) * float(prefill)
            decode_us += names.count(name) * float(decode.sum())
    seconds = (prefill_us + decode_us) / 1e6
    return PredictedThroughput(
        batch=batch,
        limit=limit,
        prefill_us=prefill_us,
        decode_us=decode_us,
        tokens_per_second_per_gpu=batch * n_out / (seconds * row.tp),
    )


def with_step(model: CostModel, engine: str, step: StepConstants) -> CostModel:
    """The cost model with other step constants for one engine."""
    constants = replace(model.engine(engine), step=step)
    return replace(model, engines=dict(model.engines) | {engine: constants})


def fit_step(
    rows: Sequence[PublishedThroughput],
    config: ParentConfig,
    model: CostModel,
    *,
    source: str,
    engine: str = "trtllm",
) -> tuple[StepConstants, _Array]:
    """Fit the engine scalar and the cost per step to published rows.

    Returns:
        The constants, and the relative error of each row under constants fitted on the others;
        the provenance of the constants carries the median and p90 of these.
    """
    step = model.engine(engine).step
    kernels = with_step(
        model,
        engine,
        replace(
            step,
            engine_scalar=1.0,
            step_us=0.0,
            step_us_per_sequence=0.0,
            step_us_per_tp_doubling=0.0,
        ),
    )
    predicted = [predict(row, config, kernels, engine=engine) for row in rows]
    kernel_us = np.array([one.prefill_us + one.decode_us for one in predicted])
    batch = np.array([one.batch for one in predicted], dtype=np.float64)
    doublings = np.log2([row.tp for row in rows])
    steps = np.array([row.scenario.output_len + 1 for row in rows], dtype=np.float64)
    published_us = (
        1e6 * batch * (steps - 1) / [row.tokens_per_second_per_gpu * row.tp for row in rows]
    )

    def total_us(values: _Array) -> _Array:
        scalar, step_us, per_sequence_us, per_doubling_us = values
        overhead_us = step_us + per_sequence_us * batch + per_doubling_us * doublings
        return np.asarray(scalar * kernel_us + steps * overhead_us)

    def fit(used: NDArray[np.bool_]) -> _Array:
        solution: Any = least_squares(
            lambda values: np.log(total_us(values) / published_us)[used],
            [1.1, 500.0, 10.0, 2000.0],
            bounds=([1.0, 0.0, 0.0, 0.0], [3.0, 20_000.0, 200.0, 20_000.0]),
            x_scale=[1.0, 1000.0, 10.0, 1000.0],
            loss="soft_l1",
            f_scale=0.05,
        )
        return np.asarray(solution.x, dtype=np.float64)

    everything = np.arange(len(rows))
    left_out = np.array(
        [published_us[row] / total_us(fit(everything != row))[row] - 1 for row in everything]
    )
    scalar, step_us, per_sequence_us, per_doubling_us = (
        round(float(value), 3) for value in fit(everything >= 0)
    )
    constants = StepConstants(
        provenance=Provenance(
            evidence="published",
            source=source,
            error_median=float(np.median(np.abs(left_out))),
            error_p90=float(np.quantile(np.abs(left_out), 0.9)),
        ),
        engine_scalar=scalar,
        step_us=step_us,
        step_us_per_sequence=per_sequence_us,
        step_us_per_tp_doubling=per_doubling_us,
        max_batch=step.max_batch,
        max_tokens=step.max_tokens,
    )
    return constants, left_out
