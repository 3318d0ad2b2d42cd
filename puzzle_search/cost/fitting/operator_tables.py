"""Operator timings to fit and to check against, and what a cost model says of them.

Tables are CSV files in the columns of ai-dynamo/aiconfigurator: ``gemm``, ``attn_prefill``,
``attn_decode`` and ``allreduce``. Needs pandas.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from puzzle_search.cost.fitting.residuals import Residuals, held_out
from puzzle_search.cost.modelled.constants import (
    AllReduceLines,
    DecodeAttentionConstants,
    EngineConstants,
    GemmConstants,
    PrefillAttentionConstants,
    Sheet,
)
from puzzle_search.cost.modelled.operators import (
    HEAD_DIM,
    all_reduce_us,
    decode_attention_us,
    gemm_us,
    prefill_attention_us,
)
from puzzle_search.errors import InputError

_Array = NDArray[np.float64]

# The tables spell the dtypes out.
_TABLE_DTYPE = {"bf16": "bfloat16", "fp8": "fp8"}
_COLUMNS = {
    "gemm": {"gemm_dtype", "m", "n", "k"},
    "attn_prefill": {"attn_dtype", "kv_cache_dtype", "batch_size", "isl"},
    "attn_decode": {"kv_cache_dtype", "batch_size", "kv_len"},
    "allreduce": {"num_gpus", "message_size"},
}
_DTYPE_COLUMNS = {"gemm_dtype", "attn_dtype", "kv_cache_dtype"}
_COMMON_COLUMNS = {"gpu", "fw", "ver", "kernel_source", "latency_ms"}
_TEXT_COLUMNS = {"gpu", "fw", "ver", "kernel_source", *_DTYPE_COLUMNS}
_HEAD_COLUMNS = {"num_heads", "num_key_value_heads"}


@dataclass(frozen=True, kw_only=True)
class OperatorTables:
    """Timings of one engine's operators on one GPU, latencies in microseconds (``us``)."""

    version: str
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
        for name in _COLUMNS:
            frame = _read(folder, name)
            frame = frame[(frame["gpu"] == gpu) & (frame["fw"] == framework)]
            # Several releases: the newest stands last.
            frame = frame[frame["ver"] == frame["ver"].max()]
            if frame.empty:
                raise InputError(
                    f"{folder}, {name} has no rows of {gpu} with {framework}",
                    remedy="name another GPU or engine",
                )
            frames[name] = frame.assign(us=frame["latency_ms"] * 1e3).reset_index(drop=True)
        reduce = frames["allreduce"]
        # Where an engine was timed eagerly and in a CUDA graph, serving uses the graph.
        graph = reduce["kernel_source"].str.endswith("graph")
        return cls(
            version=str(frames["gemm"]["ver"].iloc[0]),
            gemm=frames["gemm"],
            prefill_attention=frames["attn_prefill"],
            decode_attention=frames["attn_decode"],
            all_reduce=reduce[graph] if graph.any() else reduce,
        )

    @property
    def dtypes(self) -> tuple[str, ...]:
        """Dtypes whose GEMM was timed, bf16 first."""
        timed = set(self.gemm["gemm_dtype"])
        return tuple(name for name, spelled in _TABLE_DTYPE.items() if spelled in timed)

    def gemm_rows(self, dtype: str) -> pd.DataFrame:
        """GEMM timings of one dtype."""
        return self.gemm[self.gemm["gemm_dtype"] == _TABLE_DTYPE[dtype]]

    def prefill_rows(self, dtype: str) -> pd.DataFrame:
        """Prefill attention that fills a KV cache of this dtype, computed in it where timed so."""
        rows = self.prefill_attention
        rows = rows[rows["kv_cache_dtype"] == _TABLE_DTYPE[dtype]]
        native = rows["attn_dtype"] == _TABLE_DTYPE[dtype]
        return rows[native] if native.any() else rows

    def decode_rows(self, dtype: str) -> pd.DataFrame:
        """Decode attention over a KV cache of this dtype."""
        rows = self.decode_attention
        return rows[rows["kv_cache_dtype"] == _TABLE_DTYPE[dtype]]


def gpus_and_engines(folder: Path) -> dict[str, list[str]]:
    """The engines timed on each GPU.

    Raises:
        InputError: a table is missing, or lacks a column.
    """
    frame = _read(folder, "gemm")
    return {str(gpu): sorted(map(str, rows["fw"].unique())) for gpu, rows in frame.groupby("gpu")}


def _read(folder: Path, name: str) -> pd.DataFrame:
    paths = [path for end in ("csv.gz", "csv") if (path := folder / f"{name}.{end}").exists()]
    if not paths:
        raise InputError(
            f"{folder} has no {name}.csv.gz or {name}.csv",
            remedy=f"name a folder with {', '.join(_COLUMNS)} in the columns of aiconfigurator",
        )
    frame = pd.read_csv(paths[0])
    wanted = _COMMON_COLUMNS | _COLUMNS[name] | (_HEAD_COLUMNS if "attn" in name else set())
    missing = wanted - set(frame.columns)
    if missing:
        raise InputError(
            f"{paths[0]} has no column {', '.join(sorted(missing))}",
            remedy="use the columns of aiconfigurator, with gpu, fw and ver before them",
        )
    numbers = frame[sorted(wanted - _TEXT_COLUMNS)].apply(pd.to_numeric, errors="coerce")
    wrong = ~np.isfinite(numbers).all(axis=1) | (numbers <= 0).any(axis=1)
    if wrong.any():
        raise InputError(
            f"{paths[0]}, row {int(np.argmax(wrong)) + 2} has a size or time that is no positive "
            "number",
            remedy="correct or remove the row",
        )
    return frame


# --- predictions of a table's rows -----------------------------------------------------------


def predict_gemm(
    rows: pd.DataFrame, dtype: str, sheet: Sheet, constants: GemmConstants
) -> Residuals:
    """GEMM rows; those of fp8 include the dynamic quantisation of the activations."""
    m, n, k = (rows[name].to_numpy() for name in ("m", "n", "k"))
    predicted = gemm_us(
        m, n, k, dtype=dtype, sheet=sheet, constants=constants, quantise=dtype == "fp8"
    )
    return _residuals("GEMM", dtype, rows, predicted, held_out(m, n, k), np.zeros(len(m)))


def predict_prefill(
    rows: pd.DataFrame, dtype: str, sheet: Sheet, constants: PrefillAttentionConstants
) -> Residuals:
    """Rows of prefill attention, whole prompts."""
    batch, length, heads, kv_heads = (
        rows[name].to_numpy() for name in ("batch_size", "isl", "num_heads", "num_key_value_heads")
    )
    predicted = prefill_attention_us(
        batch,
        length,
        length,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=HEAD_DIM,
        dtype=dtype,
        sheet=sheet,
        constants=constants,
    )
    test = held_out(batch * heads, length, kv_heads)
    return _residuals("prefill attention", dtype, rows, predicted, test, kv_heads)


def predict_decode(
    rows: pd.DataFrame, dtype: str, sheet: Sheet, constants: DecodeAttentionConstants
) -> Residuals:
    """Rows of decode attention."""
    batch, length, heads, kv_heads = (
        rows[name].to_numpy()
        for name in ("batch_size", "kv_len", "num_heads", "num_key_value_heads")
    )
    predicted = np.empty(len(rows))
    for pair in np.unique(np.stack([heads, kv_heads], axis=1), axis=0):
        chosen = (heads == pair[0]) & (kv_heads == pair[1])
        predicted[chosen] = decode_attention_us(
            batch[chosen],
            length[chosen],
            heads=int(pair[0]),
            kv_heads=int(pair[1]),
            head_dim=HEAD_DIM,
            dtype=dtype,
            sheet=sheet,
            constants=constants,
        )
    test = decode_held_out(rows)
    return _residuals("decode attention", dtype, rows, predicted, test, kv_heads)


def decode_held_out(rows: pd.DataFrame) -> NDArray[np.bool_]:
    """Held-out rows of decode attention: whole cells of GQA group, streams and context.

    Timings of one group and one batch x KV heads agree within 1-2%, whatever the heads.
    """
    heads, kv_heads = rows["num_heads"], rows["num_key_value_heads"]
    return held_out(heads // kv_heads, rows["batch_size"] * kv_heads, rows["kv_len"])


def predict_all_reduce(
    rows: pd.DataFrame, sheet: Sheet, by_tp: dict[int, AllReduceLines]
) -> Residuals:
    """All-reduce rows; message sizes are in bf16 elements."""
    rows = rows[rows["num_gpus"].isin(list(by_tp))]
    gpus, size = rows["num_gpus"].to_numpy(), rows["message_size"].to_numpy()
    predicted = np.empty(len(rows))
    for tp, lines in by_tp.items():
        chosen = gpus == tp
        predicted[chosen] = all_reduce_us(2.0 * size[chosen], tp=tp, sheet=sheet, lines=lines)
    return _residuals(
        "all-reduce", "bf16", rows, predicted, held_out(gpus, size), np.zeros(len(rows))
    )


def _residuals(
    operator: str,
    dtype: str,
    rows: pd.DataFrame,
    predicted_us: _Array,
    test: NDArray[np.bool_],
    kv_heads: NDArray[np.float64],
) -> Residuals:
    return Residuals(
        operator=operator,
        dtype=dtype,
        measured_us=rows["us"].to_numpy(np.float64),
        predicted_us=predicted_us,
        held_out=test,
        kv_heads=kv_heads.astype(np.int64),
    )


def compare(constants: EngineConstants, sheet: Sheet, tables: OperatorTables) -> list[Residuals]:
    """Every operator and dtype that both the constants and the tables have."""
    found = []
    for dtype in tables.dtypes:
        if dtype in constants.dtypes:
            gemm = constants.gemm[dtype]
            prefill = constants.prefill_attention[dtype]
            decode = constants.decode_attention[dtype]
            found += [
                predict_gemm(tables.gemm_rows(dtype), dtype, sheet, gemm),
                predict_prefill(tables.prefill_rows(dtype), dtype, sheet, prefill),
                predict_decode(tables.decode_rows(dtype), dtype, sheet, decode),
            ]
    if constants.all_reduce is not None:
        by_tp = dict(constants.all_reduce.by_tp)
        found.append(predict_all_reduce(tables.all_reduce, sheet, by_tp))
    return found
