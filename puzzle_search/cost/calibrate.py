"""Fit the constants of a cost model to operator timings and to published throughput.

Operator tables are CSV files in the columns of ai-dynamo/aiconfigurator: ``gemm``,
``attn_prefill``, ``attn_decode`` and ``allreduce``. A fifth of the shapes is held out by a hash of
the shape, so that the errors that a cost model carries are of shapes that the fit has not seen.
Needs pandas and scipy.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.optimize import least_squares

from puzzle_search.cost.analytic import (
    all_reduce_us,
    decode_attention_us,
    decode_guess_us,
    gemm_us,
    prefill_attention_us,
    table_cells,
)
from puzzle_search.cost.constants import (
    AllReduceConstants,
    AllReduceLines,
    DecodeAttentionConstants,
    DecodeGroup,
    GemmConstants,
    PrefillAttentionConstants,
    Provenance,
    Sheet,
)
from puzzle_search.errors import InputError

_Array = NDArray[np.float64]

# The tables spell the dtypes out.
_TABLE_DTYPE = {"bf16": "bfloat16", "fp8": "fp8"}
_HELD_OUT_ONE_IN = 5
_HEAD_DIM = 128
_DECODE_WORK_LOG2 = np.arange(6.0, 23.0)
_DECODE_CONTEXT_LOG2 = np.array([6.0, 7.0, 8.0, 9.0, 10.0, 12.0, 14.0, 17.0])


@dataclass(frozen=True, kw_only=True)
class Errors:
    """Relative errors, predicted / measured - 1, on the held-out points."""

    values: _Array

    @property
    def median(self) -> float:
        """Median of the absolute errors."""
        return float(np.median(np.abs(self.values)))

    @property
    def p90(self) -> float:
        """90th percentile of the absolute errors."""
        return float(np.quantile(np.abs(self.values), 0.9))

    def provenance(self, source: str) -> Provenance:
        """Constants fitted on published measurements, with these errors."""
        return Provenance(
            evidence="published", source=source, error_median=self.median, error_p90=self.p90
        )


@dataclass(frozen=True, kw_only=True)
class OperatorTables:
    """Timings of one engine's operators on one GPU, latencies in microseconds (``us``)."""

    gemm: pd.DataFrame
    prefill_attention: pd.DataFrame
    decode_attention: pd.DataFrame
    all_reduce: pd.DataFrame

    @classmethod
    def from_folder(cls, folder: Path, *, gpu: str, framework: str) -> OperatorTables:
        """Read the rows of one GPU and framework.

        Raises:
            InputError: a table is missing, or has no such rows.
        """
        frames = {}
        for name in ("gemm", "attn_prefill", "attn_decode", "allreduce"):
            path = folder / f"{name}.csv.gz"
            if not path.exists():
                raise InputError(f"{path} does not exist", remedy="name the folder of the tables")
            frame = pd.read_csv(path)
            frame = frame[(frame["gpu"] == gpu) & (frame["fw"] == framework)]
            # Several releases: the newest stands last.
            frame = frame[frame["ver"] == frame["ver"].max()]
            if frame.empty:
                raise InputError(
                    f"{path} has no rows of {gpu} with {framework}", remedy="name another GPU"
                )
            frames[name] = frame.assign(us=frame["latency_ms"] * 1e3).reset_index(drop=True)
        return cls(
            gemm=frames["gemm"],
            prefill_attention=frames["attn_prefill"],
            decode_attention=frames["attn_decode"],
            all_reduce=frames["allreduce"],
        )


def held_out(*shape: Sequence[int] | pd.Series) -> NDArray[np.bool_]:
    """Which points are held out of the fit: a fifth of the shapes, by a hash of the shape."""
    digests = (
        hashlib.sha256("|".join(str(int(size)) for size in sizes).encode()).digest()
        for sizes in zip(*shape, strict=True)
    )
    return np.array([digest[0] % _HELD_OUT_ONE_IN == 0 for digest in digests])


def fit_gemm(
    table: pd.DataFrame, *, dtype: str, sheet: Sheet, source: str, launch_us: float | None = None
) -> tuple[GemmConstants, Errors]:
    """Fit the GEMM constants of one dtype.

    The fp8 rows include the dynamic quantisation of the activations. Its constant part cannot be
    told from the launch, so the launch of bf16 is given for fp8.
    """
    frame = table[table["gemm_dtype"] == _TABLE_DTYPE[dtype]]
    quantise = dtype == "fp8"
    start = {
        "launch_us": 4.0,
        "memory_fraction": 0.85,
        "compute_fraction": 0.85,
        "corner": 4.0,
        "tile_us": 1.0,
        "tile_penalty": 0.1,
        "split_us": 2.0,
        "power_slowdown": 0.02,
    }
    upper = [12.0, 1.0, 1.0, 20.0, 20.0, 2.0, 40.0, 0.3]
    lower = [0.0, 0.4, 0.4, 1.0, 0.0, 0.0, 0.0, 0.0]
    if quantise:
        start |= {"quantisation_us": 7.0, "quantisation_us_per_value": 2e-6}
        upper, lower = [*upper, 20.0, 2e-5], [*lower, 0.0, 0.0]
    fixed = {"quantisation_us": 0.0, "quantisation_us_per_value": 0.0} | (
        {} if launch_us is None else {"launch_us": launch_us}
    )
    free = [name for name in start if launch_us is None or name != "launch_us"]
    bounds = {name: pair for name, *pair in zip(start, lower, upper, strict=True)}

    def constants(values: _Array) -> GemmConstants:
        named = fixed | {name: float(v) for name, v in zip(free, values, strict=True)}
        return GemmConstants(provenance=_unknown(source), **named)

    def predict(values: _Array, rows: pd.DataFrame) -> _Array:
        return gemm_us(
            rows["m"].to_numpy(),
            rows["n"].to_numpy(),
            rows["k"].to_numpy(),
            dtype=dtype,
            sheet=sheet,
            constants=constants(values),
            quantise=quantise,
        )

    test = held_out(frame["m"], frame["n"], frame["k"])
    values, errors = _fit(
        predict,
        frame,
        test,
        start=[start[name] for name in free],
        bounds=([bounds[name][0] for name in free], [bounds[name][1] for name in free]),
    )
    return replace(constants(values), provenance=errors.provenance(source)), errors


def fit_prefill_attention(
    table: pd.DataFrame, *, dtype: str, sheet: Sheet, source: str
) -> tuple[PrefillAttentionConstants, Errors]:
    """Fit prefill attention, computed and cached in one dtype."""
    name = _TABLE_DTYPE[dtype]
    frame = table[(table["attn_dtype"] == name) & (table["kv_cache_dtype"] == name)]
    start = {
        "launch_us": 12.0,
        "us_per_sequence_head": 1e-2,
        "us_per_token_head": 1e-4,
        "compute_fraction": 0.6,
        "ramp_tokens": 300.0,
        "fill_blocks": 20.0,
    }
    bounds = ([1, 0, 0, 0.1, 0, 0], [20, 0.2, 1e-2, 1, 3000, 500])

    def constants(values: _Array) -> PrefillAttentionConstants:
        named = {name: float(v) for name, v in zip(start, values, strict=True)}
        return PrefillAttentionConstants(provenance=_unknown(source), **named)

    def predict(values: _Array, rows: pd.DataFrame) -> _Array:
        length = rows["isl"].to_numpy()
        return prefill_attention_us(
            rows["batch_size"].to_numpy(),
            length,
            length,
            heads=rows["num_heads"].to_numpy(),
            kv_heads=rows["num_key_value_heads"].to_numpy(),
            head_dim=_HEAD_DIM,
            dtype=dtype,
            sheet=sheet,
            constants=constants(values),
        )

    work = frame["batch_size"] * frame["num_heads"]
    test = held_out(work, frame["isl"], frame["num_key_value_heads"])
    values, errors = _fit(predict, frame, test, start=list(start.values()), bounds=bounds)
    return replace(constants(values), provenance=errors.provenance(source)), errors


def fit_decode_attention(
    table: pd.DataFrame, *, dtype: str, sheet: Sheet, source: str, smoothness: float = 0.3
) -> tuple[DecodeAttentionConstants, Errors]:
    """Fit the latency tables of decode attention, one per GQA group.

    Heads and batch enter only through the group and batch x KV heads (timings of one such pair
    agree within 1-2%, whatever the heads), so a held-out point is a whole cell of those and the
    context.

    Args:
        table: timings.
        dtype: of the KV cache.
        sheet: the GPU.
        source: of the timings.
        smoothness: weight of the second differences that fill cells without timings. Its default
            and the knots were chosen on the H100's held-out cells, whose error flatters a little.
    """
    frame = table[table["kv_cache_dtype"] == _TABLE_DTYPE[dtype]]
    frame = frame.assign(
        group=frame["num_heads"] // frame["num_key_value_heads"],
        streams=frame["batch_size"] * frame["num_key_value_heads"],
    )
    test = held_out(frame["group"], frame["streams"], frame["kv_len"])
    groups = {
        int(group): _decode_group(rows, dtype=dtype, sheet=sheet, smoothness=smoothness)
        for group, rows in frame[~test].groupby("group")
    }
    constants = DecodeAttentionConstants(
        provenance=_unknown(source),
        work_log2=_DECODE_WORK_LOG2,
        context_log2=_DECODE_CONTEXT_LOG2,
        groups=groups,
    )
    predicted = np.concatenate(
        [
            decode_attention_us(
                rows["batch_size"].to_numpy(),
                rows["kv_len"].to_numpy(),
                heads=int(heads),
                kv_heads=int(kv_heads),
                head_dim=_HEAD_DIM,
                dtype=dtype,
                sheet=sheet,
                constants=constants,
            )
            / rows["us"].to_numpy()
            for (heads, kv_heads), rows in frame[test].groupby(["num_heads", "num_key_value_heads"])
        ]
    )
    errors = Errors(values=predicted - 1)
    return replace(constants, provenance=errors.provenance(source)), errors


def _decode_group(
    rows: pd.DataFrame, *, dtype: str, sheet: Sheet, smoothness: float
) -> DecodeGroup:
    """Fit the first guess of one GQA group, then the table that it is multiplied by."""
    streams, context = (rows[name].to_numpy(np.float64) for name in ("streams", "kv_len"))
    shape = (len(_DECODE_WORK_LOG2), len(_DECODE_CONTEXT_LOG2))

    def entry(values: _Array) -> DecodeGroup:
        floor, per_stream, fraction = map(float, values)
        return DecodeGroup(
            floor_us=floor, us_per_stream=per_stream, memory_fraction=fraction, ratio=np.ones(shape)
        )

    def guess(values: _Array, points: pd.DataFrame) -> _Array:
        return decode_guess_us(
            points["streams"].to_numpy(np.float64),
            points["kv_len"].to_numpy(np.float64),
            entry=entry(values),
            dtype=dtype,
            sheet=sheet,
        )

    bounds = ([1, 0, 1e-3], [50, 1, 1])
    values = _least_squares(guess, rows, start=[7, 0.01, 0.5], bounds=bounds)
    weights, cells = table_cells(_DECODE_WORK_LOG2, _DECODE_CONTEXT_LOG2, streams, context)
    basis = np.zeros((len(rows), shape[0] * shape[1]))
    np.add.at(basis, (np.arange(len(rows)), cells), weights)
    wanted = rows["us"].to_numpy() / guess(values, rows)
    penalty = smoothness * _second_differences(shape)
    # Weighted by 1 / wanted, the residuals are relative; the table stays near 1 where nothing is.
    ratio = np.linalg.lstsq(
        np.vstack([basis / wanted[:, None], penalty]),
        np.concatenate([np.ones(len(rows)), np.zeros(len(penalty))]),
        rcond=None,
    )[0]
    return replace(entry(values), ratio=np.maximum(ratio, 0.05).reshape(shape))


def fit_all_reduce(
    table: pd.DataFrame, *, sheet: Sheet, source: str
) -> tuple[AllReduceConstants, Errors]:
    """Fit the two lines of the all-reduce for each TP degree. Sizes are in bf16 elements."""
    by_tp, errors = {}, []
    for tp, frame in table.groupby("num_gpus"):

        def predict(values: _Array, rows: pd.DataFrame, tp: int = int(tp)) -> _Array:
            size = 2.0 * rows["message_size"].to_numpy()
            return all_reduce_us(size, tp=tp, sheet=sheet, lines=_lines(values))

        test = held_out(frame["num_gpus"], frame["message_size"])
        values, tp_errors = _fit(
            predict, frame, test, start=[3, 10, 20, 5], bounds=([0] * 4, [20, 100, 100, 20])
        )
        by_tp[int(tp)] = _lines(values)
        errors.append(tp_errors.values)
    together = Errors(values=np.concatenate(errors))
    return AllReduceConstants(provenance=together.provenance(source), by_tp=by_tp), together


def _lines(values: _Array) -> AllReduceLines:
    one, one_slope, two, two_slope = map(float, values)
    return AllReduceLines(
        one_shot_us=one,
        one_shot_us_per_mib=one_slope,
        two_shot_us=two,
        two_shot_us_per_mib=two_slope,
    )


def _unknown(source: str) -> Provenance:
    """Stands in while a fit runs; the held-out errors replace it."""
    return Provenance(evidence="published", source=source, error_median=None, error_p90=None)


def _fit(
    predict: Callable[[_Array, pd.DataFrame], _Array],
    frame: pd.DataFrame,
    test: NDArray[np.bool_],
    *,
    start: Sequence[float],
    bounds: tuple[Sequence[float], Sequence[float]],
) -> tuple[_Array, Errors]:
    """Fit the rows that are not held out; errors on those that are."""
    values = _least_squares(predict, frame[~test], start=start, bounds=bounds)
    checked = frame[test]
    return values, Errors(values=predict(values, checked) / checked["us"].to_numpy() - 1)


def _least_squares(
    predict: Callable[[_Array, pd.DataFrame], _Array],
    rows: pd.DataFrame,
    *,
    start: Sequence[float],
    bounds: tuple[Sequence[float], Sequence[float]],
) -> _Array:
    """Constants with the least log ratio of predicted to measured, robust to outliers."""
    measured = rows["us"].to_numpy()

    def residual(values: _Array) -> _Array:
        return np.asarray(np.log(predict(values, rows) / measured))

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
