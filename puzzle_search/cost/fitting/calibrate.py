"""Fit the constants of a cost model to operator timings.

What an engine adds to its kernels is not in them: `calibrate_engine` fits that. Needs pandas and
scipy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from puzzle_search.cost.fitting.experts import fit_experts
from puzzle_search.cost.fitting.operator_tables import (
    OperatorTables,
    all_reduce_held_out,
    decode_held_out,
    gemm_held_out,
    predict_all_reduce,
    predict_decode,
    predict_gemm,
    predict_prefill,
    prefill_held_out,
)
from puzzle_search.cost.fitting.ratio_fit import ROOFLINE, fit_constants, fit_ratios
from puzzle_search.cost.modelled.constants import (
    AllReduceConstants,
    AllReduceLines,
    DecodeAttentionConstants,
    DecodeKernel,
    ElementwiseConstants,
    EngineConstants,
    GemmConstants,
    PrefillAttentionConstants,
    PrefillKernel,
    Provenance,
    Sheet,
    StepConstants,
)
from puzzle_search.cost.modelled.hardware import CostModel
from puzzle_search.cost.modelled.operators import (
    BYTES_PER_VALUE,
    KV_BLOCK_TOKENS,
    decode_guess_us,
    gemm_limits_us,
    prefill_guess_us,
    roofline_us,
)
from puzzle_search.cost.modelled.roofline import roofline_engine
from puzzle_search.errors import InputError

_Array = NDArray[np.float64]

# Knots of the tables. Kernels change with the rows at multiples of 16 and 128, hence the pairs.
_SIDES = (256, 512, 1024, 2048, 3072, 4096, 6144, 8192, 12288, 16384, 32768, 65536)
_GEMM_AXES = {
    "rows": (
        *(1, 8, 16, 32, 33, 64, 65, 128, 129, 256, 257),
        *(512, 1024, 2048, 4096, 8192, 16384, 32768),
    ),
    "columns": _SIDES,
    "inner": _SIDES,
    "weights": tuple(2.0**i for i in range(18, 33)),
}
_GEMM_TABLES = ("rows weights", "rows columns", "columns inner")
_GROUPS = (1, 2, 4, 8, 16, 32, 64)
_PREFILL_AXES = {
    "context": (1, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384),
    "queries": tuple(4.0**i for i in range(1, 13)),
    "group": _GROUPS,
}
_PREFILL_TABLES = ("context queries", "context group", "queries group")
_DECODE_AXES = {
    "work": tuple(2.0**i for i in range(6, 25)),
    "context": (2, 64, 128, 512, 1024, 4096, 16384, 131072),
    "group": _GROUPS,
    "streams": tuple(4.0**i for i in range(8)),
}
_DECODE_TABLES = ("work context", "group work", "group context", "group streams")

# Bounds of the first guess: start, least, largest.
_DECODE = {
    "floor_us": (7.0, 0.5, 100.0),
    "us_per_stream": (0.01, 0.0, 1.0),
    "memory_fraction": (0.5, 1e-3, 1.0),
}
# The guesses of matrix products are found on one timing in so many: there are 35,000.
_GUESS_ONE_IN = 7
# A product takes at least this share of its timing, however long its scaling took.
_LEAST_SHARE = 0.1


def calibrate_tables(
    tables: Mapping[str, OperatorTables], start: CostModel, *, source: str
) -> CostModel:
    """Fit every operator of every engine; the step constants stay those of ``start``.

    Args:
        tables: timings by engine.
        start: its sheet is used. An engine that it lacks takes the step constants of its first
            engine as ``reconstructed``, or none where it has no engine.
        source: where the timings come from.

    Raises:
        InputError: a dtype was timed that the sheet has no peak for.
    """
    for name, timed in tables.items():
        unknown = set(timed.dtypes) - start.sheet.flops_per_second.keys()
        if unknown:
            raise InputError(
                f"{', '.join(sorted(unknown))} was timed with {name}, and the sheet of {start.gpu} "
                "has no peak for it",
                remedy="add it to flops_per_second of the sheet",
            )
    engines = {
        name: calibrate_engine(
            timed,
            start.sheet,
            source=f"{source}; {name} {timed.version}",
            step=step_for(start, name),
        )
        for name, timed in tables.items()
    }
    return CostModel(gpu=start.gpu, sheet=start.sheet, engines=engines)


def step_for(start: CostModel, engine: str) -> StepConstants:
    """Step constants of an engine, which operator timings do not show, or what stands for them."""
    if engine in start.engines:
        step = start.engines[engine].step
        if start.based_on is None:
            return step
        source = f"no whole model was timed: those of the {start.based_on} stand in"
        return replace(step, provenance=_reconstructed(source))
    if start.engines:
        other, constants = next(iter(start.engines.items()))
        step, source = constants.step, f"no whole model was timed: those of {other} stand in"
    else:
        step, source = roofline_engine(start.sheet).step, "no whole model was timed: kernels alone"
    return replace(step, provenance=_reconstructed(source))


def _reconstructed(source: str) -> Provenance:
    return Provenance(evidence="reconstructed", source=source, error_median=None, error_p90=None)


def calibrate_engine(
    tables: OperatorTables, sheet: Sheet, *, source: str, step: StepConstants
) -> EngineConstants:
    """Fit every operator of one engine, in every dtype that was timed."""
    attention = [
        dtype
        for dtype in tables.dtypes
        if not (tables.prefill_rows(dtype).empty or tables.decode_rows(dtype).empty)
    ]
    common: dict[str, Any] = {"sheet": sheet, "source": source}
    return EngineConstants(
        version=tables.version,
        gemm={
            dtype: fit_gemm(
                tables.gemm_rows(dtype), tables.quantisation_rows(dtype), dtype=dtype, **common
            )
            for dtype in tables.dtypes
        },
        prefill_attention={
            dtype: fit_prefill_attention(tables.prefill_rows(dtype), dtype=dtype, **common)
            for dtype in attention
        },
        decode_attention={
            dtype: fit_decode_attention(tables.decode_rows(dtype), dtype=dtype, **common)
            for dtype in attention
        },
        elementwise=ElementwiseConstants(
            provenance=_reconstructed(
                "not in the operator tables: launch as of the smallest GEMM, bandwidth share as of "
                "a long GEMM; the step constants absorb the rest"
            ),
            launch_us=2.5,
            memory_fraction=0.8,
        ),
        all_reduce=None
        if tables.all_reduce is None
        else fit_all_reduce(tables.all_reduce, sheet=sheet, source=source),
        step=step,
        experts=fit_experts(tables.experts, sheet=sheet, source=source),
    )


def fit_gemm(
    rows: pd.DataFrame,
    quantisation: pd.DataFrame | None,
    *,
    dtype: str,
    sheet: Sheet,
    source: str,
) -> GemmConstants:
    """Fit the GEMM constants of one dtype.

    Args:
        rows: timings; those of fp8 include the dynamic scaling of the activations.
        quantisation: timings of that scaling, which is taken out; without them it stays in.
        dtype: of both.
        sheet: the GPU.
        source: where the timings come from.
    """
    scaling = {"quantisation_us": 0.0, "quantisation_us_per_value": 0.0}
    if quantisation is not None:
        values = (quantisation["m"] * quantisation["k"]).to_numpy(np.float64)
        scaling_us = quantisation["us"].to_numpy(np.float64)
        found = fit_constants(
            lambda at: np.log((at[0] + at[1] * values) / scaling_us),
            bounds={"us": (5.0, 1e-3, 50.0), "us_per_value": (2e-6, 0.0, 1e-4)},
        )
        scaling = dict(zip(scaling, map(float, found), strict=True))
    train = rows[~gemm_held_out(rows)]
    m, n, k = (train[name].to_numpy(np.float64) for name in ("m", "n", "k"))
    timed_us = train["us"].to_numpy(np.float64)
    scaled_us = scaling["quantisation_us"] + scaling["quantisation_us_per_value"] * m * k
    product_us = np.maximum(timed_us - scaled_us, _LEAST_SHARE * timed_us)
    limits = gemm_limits_us(m, n, k, dtype=dtype, sheet=sheet)

    def constants(values: _Array) -> GemmConstants:
        named = dict(zip(ROOFLINE, map(float, values), strict=True))
        return GemmConstants(provenance=_unknown(source), ratios=None, **named, **scaling)

    some = slice(None, None, _GUESS_ONE_IN if len(train) > 1000 else 1)
    memory_us, compute_us = (limit[some] for limit in limits)
    fitted = constants(
        fit_constants(
            lambda values: np.log(
                roofline_us(memory_us, compute_us, constants(values)) / product_us[some]
            ),
            bounds=ROOFLINE,
        )
    )
    ratios = fit_ratios(
        _GEMM_AXES,
        _GEMM_TABLES,
        {"rows": m, "columns": n, "inner": k, "weights": n * k},
        product_us / roofline_us(*limits, fitted),
    )
    fitted = replace(fitted, ratios=ratios)
    checked = predict_gemm(rows, dtype, sheet, fitted)
    return replace(fitted, provenance=checked.provenance(source))


def fit_prefill_attention(
    rows: pd.DataFrame, *, dtype: str, sheet: Sheet, source: str
) -> PrefillAttentionConstants:
    """Fit prefill attention that caches in one dtype, in every head_dim."""
    train = rows[~prefill_held_out(rows)]
    fitted = PrefillAttentionConstants(
        provenance=_unknown(source),
        head_dims={
            int(head_dim): _prefill_kernel(part, int(head_dim), dtype=dtype, sheet=sheet)
            for head_dim, part in train.groupby("head_dim")
        },
    )
    checked = predict_prefill(rows, dtype, sheet, fitted)
    return replace(fitted, provenance=checked.provenance(source))


def _prefill_kernel(
    rows: pd.DataFrame, head_dim: int, *, dtype: str, sheet: Sheet
) -> PrefillKernel:
    batch, length, heads, kv_heads = (
        rows[name].to_numpy(np.float64)
        for name in ("batch_size", "isl", "num_heads", "num_key_value_heads")
    )
    timed_us = rows["us"].to_numpy(np.float64)

    def kernel(values: _Array) -> PrefillKernel:
        return PrefillKernel(ratios=None, **dict(zip(ROOFLINE, map(float, values), strict=True)))

    def guess_us(of: PrefillKernel) -> _Array:
        shape = (batch, length, length, heads, kv_heads)
        return prefill_guess_us(*shape, head_dim=head_dim, dtype=dtype, sheet=sheet, kernel=of)

    fitted = kernel(
        fit_constants(lambda values: np.log(guess_us(kernel(values)) / timed_us), bounds=ROOFLINE)
    )
    sizes = {"context": length, "queries": batch * heads * length, "group": heads / kv_heads}
    ratios = fit_ratios(_PREFILL_AXES, _PREFILL_TABLES, sizes, timed_us / guess_us(fitted))
    return replace(fitted, ratios=ratios)


def fit_decode_attention(
    rows: pd.DataFrame, *, dtype: str, sheet: Sheet, source: str
) -> DecodeAttentionConstants:
    """Fit decode attention over a KV cache of one dtype, in every head_dim."""
    train = rows[~decode_held_out(rows)]
    fitted = DecodeAttentionConstants(
        provenance=_unknown(source),
        head_dims={
            int(head_dim): _decode_kernel(part, int(head_dim), dtype=dtype, sheet=sheet)
            for head_dim, part in train.groupby("head_dim")
        },
    )
    checked = predict_decode(rows, dtype, sheet, fitted)
    return replace(fitted, provenance=checked.provenance(source))


def _decode_kernel(rows: pd.DataFrame, head_dim: int, *, dtype: str, sheet: Sheet) -> DecodeKernel:
    batch, context, heads, kv_heads = (
        rows[name].to_numpy(np.float64)
        for name in ("batch_size", "kv_len", "num_heads", "num_key_value_heads")
    )
    streams, timed_us = batch * kv_heads, rows["us"].to_numpy(np.float64)
    kv_bytes = 2 * head_dim * BYTES_PER_VALUE[dtype] * streams * context
    ceiling = min(1.0, float(np.max(kv_bytes / timed_us)) / (sheet.hbm_bytes_per_second / 1e6))

    def kernel(values: _Array) -> DecodeKernel:
        named = dict(zip(_DECODE, map(float, values), strict=True))
        return DecodeKernel(ratios=None, ceiling_fraction=ceiling, **named)

    def guess_us(of: DecodeKernel) -> _Array:
        return decode_guess_us(
            streams, context, head_dim=head_dim, dtype=dtype, sheet=sheet, kernel=of
        )

    fitted = kernel(
        fit_constants(lambda values: np.log(guess_us(kernel(values)) / timed_us), bounds=_DECODE)
    )
    sizes = {
        "work": streams * np.maximum(context, KV_BLOCK_TOKENS),
        "context": context,
        "group": heads / kv_heads,
        "streams": streams,
    }
    ratios = fit_ratios(_DECODE_AXES, _DECODE_TABLES, sizes, timed_us / guess_us(fitted))
    return replace(fitted, ratios=ratios)


def fit_all_reduce(rows: pd.DataFrame, *, sheet: Sheet, source: str) -> AllReduceConstants:
    """Lines through the all-reduce timings of each TP degree; sizes are in bf16 elements.

    A message takes no longer than a larger one: where it was timed so, the machine had paused.
    """
    train = rows[~all_reduce_held_out(rows)].sort_values("message_size")
    by_tp = {
        int(tp): AllReduceLines(
            message_bytes=2.0 * part["message_size"].to_numpy(np.float64),
            us=np.minimum.accumulate(part["us"].to_numpy(np.float64)[::-1])[::-1],
        )
        for tp, part in train.groupby("num_gpus")
    }
    checked = predict_all_reduce(rows, sheet, by_tp)
    return AllReduceConstants(provenance=checked.provenance(source), by_tp=by_tp)


def _unknown(source: str) -> Provenance:
    """Stands in while a fit runs; the held-out errors replace it."""
    return Provenance(evidence="published", source=source, error_median=None, error_p90=None)
