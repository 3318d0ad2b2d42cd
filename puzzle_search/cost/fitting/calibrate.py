"""Fit the constants of a cost model to operator timings.

What an engine adds to its kernels is not in them: `calibrate_engine` fits that. Needs pandas and
scipy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.optimize import least_squares

from puzzle_search.cost.fitting.operator_tables import (
    OperatorTables,
    decode_held_out,
    predict_all_reduce,
    predict_decode,
    predict_gemm,
    predict_prefill,
)
from puzzle_search.cost.fitting.residuals import Residuals
from puzzle_search.cost.modelled.constants import (
    AllReduceConstants,
    AllReduceLines,
    DecodeAttentionConstants,
    DecodeGroup,
    ElementwiseConstants,
    EngineConstants,
    GemmConstants,
    PrefillAttentionConstants,
    Provenance,
    Sheet,
    StepConstants,
    Tile,
)
from puzzle_search.cost.modelled.hardware import CostModel
from puzzle_search.cost.modelled.operators import decode_guess_us, table_cells
from puzzle_search.cost.modelled.roofline import roofline_engine

_Array = NDArray[np.float64]

# Tiles that libraries choose from freely, splitting the inner dimension too (cuBLAS and such).
_FREE_SIZES = ((64, 64), (64, 128), (128, 64), (128, 128), (64, 256), (128, 256), (256, 128))
_FREE = {1: tuple(Tile(cluster=1, rows=m, columns=n) for m, n in _FREE_SIZES)}
# vLLM picks its CUTLASS fp8 kernel by the number of rows, and does not split.
_BY_ROWS = {
    1: Tile(cluster=1, rows=64, columns=64),
    65: Tile(cluster=1, rows=64, columns=128),
    129: Tile(cluster=2, rows=128, columns=128),
    8192: Tile(cluster=2, rows=256, columns=128),
}
_CUTLASS_FP8 = "CutlassFP8ScaledMMLinearKernel"
_DECODE_WORK_LOG2 = np.arange(6.0, 23.0)
_DECODE_CONTEXT_LOG2 = np.array([1.0, 6.0, 7.0, 8.0, 9.0, 10.0, 12.0, 14.0, 17.0])
# Weight of the second differences that fill cells without timings. It and the knots were chosen on
# the held-out cells of the H100 with TensorRT-LLM, whose error flatters a little.
_DECODE_SMOOTHNESS = 0.3

# Bounds of the GEMM constants: start, least, largest.
_GEMM = {
    "launch_us": (4.0, 0.0, 12.0),
    "memory_fraction": (0.85, 0.4, 1.0),
    "compute_fraction": (0.85, 0.4, 1.0),
    "corner": (4.0, 1.0, 20.0),
    "tile_us": (1.0, 0.0, 20.0),
    "tile_penalty": (0.1, 0.0, 2.0),
    "padding_penalty": (0.1, 0.0, 2.0),
    "split_us": (2.0, 0.0, 40.0),
    "power_slowdown": (0.02, 0.0, 0.3),
}
_QUANTISATION = {
    "quantisation_us": (7.0, 0.0, 20.0),
    "quantisation_us_per_value": (2e-6, 0.0, 2e-5),
}
_PREFILL = {
    "launch_us": (12.0, 1.0, 20.0),
    "corner": (1.5, 1.0, 10.0),
    "compute_fraction": (0.6, 0.1, 1.0),
    "block_tokens": (100.0, 0.0, 3000.0),
    "wave_share": (0.5, 0.0, 1.0),
    "us_per_sequence_head": (1e-2, 0.0, 0.2),
    "us_per_token": (1e-3, 0.0, 1e-2),
    "us_per_token_query_head": (1e-4, 0.0, 1e-2),
    "us_per_token_kv_head": (1e-4, 0.0, 1e-2),
}
_Bounds = Mapping[str, tuple[float, float, float]]
_Constants = TypeVar("_Constants", GemmConstants, PrefillAttentionConstants)


def calibrate_tables(
    tables: Mapping[str, OperatorTables], start: CostModel, *, source: str
) -> CostModel:
    """Fit every operator of every engine; the step constants stay those of ``start``.

    Args:
        tables: timings by engine.
        start: its sheet is used. An engine that it lacks takes the step constants of its first
            engine as ``reconstructed``, or none where it has no engine.
        source: where the timings come from.
    """
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
        return start.engines[engine].step
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
    gemm: dict[str, GemmConstants] = {}
    for dtype in tables.dtypes:
        launch_us = gemm["bf16"].launch_us if dtype == "fp8" and "bf16" in gemm else None
        gemm[dtype] = fit_gemm(
            tables.gemm_rows(dtype), dtype=dtype, sheet=sheet, source=source, launch_us=launch_us
        )
    return EngineConstants(
        version=tables.version,
        gemm=gemm,
        prefill_attention={
            dtype: fit_prefill_attention(
                tables.prefill_rows(dtype), dtype=dtype, sheet=sheet, source=source
            )
            for dtype in tables.dtypes
        },
        decode_attention={
            dtype: fit_decode_attention(
                tables.decode_rows(dtype), dtype=dtype, sheet=sheet, source=source
            )
            for dtype in tables.dtypes
        },
        elementwise=ElementwiseConstants(
            provenance=_reconstructed(
                "not in the operator tables: launch as of the smallest GEMM, bandwidth share as of "
                "a long GEMM; the step constants absorb the rest"
            ),
            launch_us=2.5,
            memory_fraction=0.8,
        ),
        all_reduce=fit_all_reduce(tables.all_reduce, sheet=sheet, source=source),
        step=step,
    )


def fit_gemm(
    rows: pd.DataFrame, *, dtype: str, sheet: Sheet, source: str, launch_us: float | None
) -> GemmConstants:
    """Fit the GEMM constants of one dtype.

    The fp8 rows include the dynamic quantisation of the activations. Its constant part cannot be
    told from the launch, so the launch of bf16 is given for fp8.
    """
    bounds = dict(_GEMM) | (_QUANTISATION if dtype == "fp8" else {})
    fixed = {} if dtype == "fp8" else dict.fromkeys(_QUANTISATION, 0.0)
    if launch_us is not None:
        fixed["launch_us"] = launch_us
        del bounds["launch_us"]

    by_rows = set(rows["kernel_source"]) == {_CUTLASS_FP8}
    if by_rows:
        fixed |= {"compute_fraction": 1.0, "split_us": 0.0}
        bounds |= {str(tile): (0.8, 0.1, 1.0) for tile in _BY_ROWS.values()}
        bounds = {name: bound for name, bound in bounds.items() if name not in fixed}

    def constants(**values: float) -> GemmConstants:
        tiles = {
            start: (replace(tile, efficiency=values.pop(str(tile))),)
            for start, tile in (_BY_ROWS if by_rows else {}).items()
        }
        return GemmConstants(
            provenance=_unknown(source),
            tiles=tiles or _FREE,
            max_split=1 if by_rows else 8,
            **fixed,
            **values,
        )

    def compared(found: GemmConstants, part: pd.DataFrame) -> Residuals:
        return predict_gemm(part, dtype, sheet, found)

    return _fit(constants, compared, rows, bounds, source)


def fit_prefill_attention(
    rows: pd.DataFrame, *, dtype: str, sheet: Sheet, source: str
) -> PrefillAttentionConstants:
    """Fit prefill attention that caches in one dtype.

    Whether the kernel packs the query heads of a group into one tile is found by trying both.
    """

    def compared(found: PrefillAttentionConstants, part: pd.DataFrame) -> Residuals:
        return predict_prefill(part, dtype, sheet, found)

    def fitted(packs_groups: bool) -> PrefillAttentionConstants:
        def constants(**values: float) -> PrefillAttentionConstants:
            return PrefillAttentionConstants(
                provenance=_unknown(source), packs_groups=packs_groups, **values
            )

        return _fit(constants, compared, rows, _PREFILL, source)

    def train_error(found: PrefillAttentionConstants) -> float:
        checked = compared(found, rows)
        return float(np.mean(np.abs(np.log1p(checked.relative[~checked.held_out]))))

    return min(fitted(False), fitted(True), key=train_error)


def fit_decode_attention(
    rows: pd.DataFrame, *, dtype: str, sheet: Sheet, source: str
) -> DecodeAttentionConstants:
    """Fit the latency tables of decode attention, one per GQA group."""
    test = decode_held_out(rows)
    named = rows.assign(
        group=rows["num_heads"] // rows["num_key_value_heads"],
        streams=rows["batch_size"] * rows["num_key_value_heads"],
    )
    groups = {
        int(group): _decode_group(part, dtype=dtype, sheet=sheet)
        for group, part in named[~test].groupby("group")
    }
    fitted = DecodeAttentionConstants(
        provenance=_unknown(source),
        work_log2=_DECODE_WORK_LOG2,
        context_log2=_DECODE_CONTEXT_LOG2,
        groups=groups,
    )
    checked = predict_decode(rows, dtype, sheet, fitted)
    return replace(fitted, provenance=checked.provenance(source))


def _decode_group(rows: pd.DataFrame, *, dtype: str, sheet: Sheet) -> DecodeGroup:
    """Fit the first guess of one GQA group, then the table that it is multiplied by."""
    streams, context = (rows[name].to_numpy(np.float64) for name in ("streams", "kv_len"))
    measured_us = rows["us"].to_numpy(np.float64)
    shape = (len(_DECODE_WORK_LOG2), len(_DECODE_CONTEXT_LOG2))

    def entry(values: _Array) -> DecodeGroup:
        floor, per_stream, fraction = map(float, values)
        return DecodeGroup(
            floor_us=floor, us_per_stream=per_stream, memory_fraction=fraction, ratio=np.ones(shape)
        )

    def guess(values: _Array) -> _Array:
        return decode_guess_us(streams, context, entry=entry(values), dtype=dtype, sheet=sheet)

    values = _least_squares(
        lambda values: np.log(guess(values) / measured_us),
        start=[7, 0.01, 0.5],
        bounds=([1, 0, 1e-3], [50, 1, 1]),
    )
    weights, cells = table_cells(_DECODE_WORK_LOG2, _DECODE_CONTEXT_LOG2, streams, context)
    basis = np.zeros((len(rows), shape[0] * shape[1]))
    np.add.at(basis, (np.arange(len(rows)), cells), weights)
    wanted = measured_us / guess(values)
    penalty = _DECODE_SMOOTHNESS * _second_differences(shape)
    # Weighted by 1 / wanted, the residuals are relative; the table stays near 1 where nothing is.
    ratio = np.linalg.lstsq(
        np.vstack([basis / wanted[:, None], penalty]),
        np.concatenate([np.ones(len(rows)), np.zeros(len(penalty))]),
        rcond=None,
    )[0]
    return replace(entry(values), ratio=np.maximum(ratio, 0.05).reshape(shape))


def fit_all_reduce(rows: pd.DataFrame, *, sheet: Sheet, source: str) -> AllReduceConstants:
    """Fit the two lines of the all-reduce for each TP degree."""
    names = ("one_shot_us", "one_shot_us_per_mib", "two_shot_us", "two_shot_us_per_mib")
    by_tp: dict[int, AllReduceLines] = {}
    for tp, frame in rows.groupby("num_gpus"):

        def residual(values: _Array, tp: int = int(tp), frame: pd.DataFrame = frame) -> _Array:
            lines = AllReduceLines(**dict(zip(names, map(float, values), strict=True)))
            found = predict_all_reduce(frame, sheet, {tp: lines})
            return np.asarray(np.log1p(found.relative)[~found.held_out])

        values = _least_squares(
            residual, start=[3, 10, 20, 5], bounds=([0] * 4, [20, 100, 100, 20])
        )
        by_tp[int(tp)] = AllReduceLines(**dict(zip(names, map(float, values), strict=True)))
    checked = predict_all_reduce(rows, sheet, by_tp)
    return AllReduceConstants(provenance=checked.provenance(source), by_tp=by_tp)


def _unknown(source: str) -> Provenance:
    """Stands in while a fit runs; the held-out errors replace it."""
    return Provenance(evidence="published", source=source, error_median=None, error_p90=None)


def _fit(
    constants: Callable[..., _Constants],
    compared: Callable[[_Constants, pd.DataFrame], Residuals],
    rows: pd.DataFrame,
    bounds: _Bounds,
    source: str,
) -> _Constants:
    """Fit the rows that are not held out; the constants carry the errors of those that are."""
    start, lower, upper = zip(*bounds.values(), strict=True)

    def named(values: _Array) -> _Constants:
        return constants(**dict(zip(bounds, map(float, values), strict=True)))

    train = rows[~compared(named(np.array(start)), rows).held_out]
    values = _least_squares(
        lambda values: np.log1p(compared(named(values), train).relative),
        start=start,
        bounds=(lower, upper),
    )
    found = named(values)
    return replace(found, provenance=compared(found, rows).provenance(source))


def _least_squares(
    residual: Callable[[_Array], _Array],
    *,
    start: Sequence[float],
    bounds: tuple[Sequence[float], Sequence[float]],
) -> _Array:
    """Constants with the least log ratio of predicted to measured, robust to outliers."""
    fit: Any = least_squares(
        residual,
        start,
        bounds=bounds,
        loss="soft_l1",
        f_scale=0.05,
        diff_step=1e-3,
        x_scale=np.maximum(np.abs(start), 1e-9),
    )
    return np.asarray(fit.x, dtype=np.float64)


def _second_differences(shape: tuple[int, int]) -> _Array:
    """Rows that are zero on a table linear along both axes."""
    entries = np.eye(shape[0] * shape[1]).reshape(*shape, -1)
    flat = [np.diff(entries, n=2, axis=axis).reshape(-1, entries.shape[-1]) for axis in (0, 1)]
    return np.vstack(flat)
