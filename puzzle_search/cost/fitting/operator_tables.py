"""Operator timings to fit and to check against, and what a cost model says of them.

Tables are CSV files in the columns of ai-dynamo/aiconfigurator: ``gemm``, ``attn_prefill``,
``attn_decode``, ``allreduce``, and ``computescale`` where dynamic quantisation was timed; those of
its package are read by `puzzle_search.cost.fitting.silicon`. Needs pandas.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from packaging.version import InvalidVersion, Version

from puzzle_search.cost.fitting.residuals import Residuals, held_out
from puzzle_search.cost.memory import parse_dtype
from puzzle_search.cost.modelled.constants import (
    AllReduceLines,
    DecodeAttentionConstants,
    EngineConstants,
    GemmConstants,
    PrefillAttentionConstants,
    Sheet,
)
from puzzle_search.cost.modelled.operators import (
    all_reduce_us,
    decode_attention_us,
    gemm_us,
    prefill_attention_us,
)
from puzzle_search.errors import InputError

_Array = NDArray[np.float64]

# The tables spell the dtypes out.
TABLE_DTYPE = {"bf16": "bfloat16", "fp8": "fp8", "nvfp4": "nvfp4"}
HEAD_DIMS = (64, 128, 256)
"""Head dimensions that attention is fitted in."""
# Below, a matrix product is a launch; no subblock of a model worth a GPU has one.
_LEAST_SIDE = 256
_LARGEST_GROUP = 64
# Share of the shapes from which on a precision counts as timed.
_MOSTLY = 1 / 3
_COLUMNS = {
    "gemm": {"gemm_dtype", "m", "n", "k"},
    "attn_prefill": {"attn_dtype", "kv_cache_dtype", "batch_size", "isl"},
    "attn_decode": {"kv_cache_dtype", "batch_size", "kv_len"},
    "allreduce": {"num_gpus", "message_size"},
}
_OPTIONAL_COLUMNS = {"computescale": {"quant_dtype", "m", "k"}}
_DTYPE_COLUMNS = {"gemm_dtype", "attn_dtype", "kv_cache_dtype", "quant_dtype"}
_COMMON_COLUMNS = {"gpu", "fw", "ver", "kernel_source", "latency_ms"}
_TEXT_COLUMNS = {"gpu", "fw", "ver", "kernel_source", *_DTYPE_COLUMNS}
_OPTIONAL_NUMBERS = {"head_dim"}
_LARGEST = 1e15
_HEAD_COLUMNS = {"num_heads", "num_key_value_heads"}
_PREFILL_SHAPE = ("batch_size", "isl", "num_heads", "num_key_value_heads")
_DECODE_SHAPE = ("batch_size", "kv_len", "num_heads", "num_key_value_heads")


@dataclass(frozen=True, kw_only=True)
class OperatorTables:
    """Timings of one engine's operators on one GPU, latencies in microseconds (``us``).

    ``quantisation`` times the dynamic scaling of activations that fp8 products include, None where
    it was not timed apart; ``all_reduce`` is None where GPUs were not joined, ``experts`` where no
    layers of experts were timed.
    """

    version: str
    gemm: pd.DataFrame
    prefill_attention: pd.DataFrame
    decode_attention: pd.DataFrame
    all_reduce: pd.DataFrame | None
    quantisation: pd.DataFrame | None
    experts: pd.DataFrame | None = None

    @classmethod
    def from_folder(cls, folder: Path, *, gpu: str, framework: str) -> OperatorTables:
        """Read the rows of one GPU and framework.

        Raises:
            InputError: a table is missing, or has no such rows.
        """
        frames = {}
        for name in (*_COLUMNS, *_OPTIONAL_COLUMNS):
            if name in _OPTIONAL_COLUMNS and _path(folder, name) is None:
                continue
            frame = _read(folder, name)
            frame = frame[(frame["gpu"] == gpu) & (frame["fw"] == framework)]
            if not frame.empty:
                newest = max(frame["ver"].astype(str).unique(), key=as_version)
                frame = frame[frame["ver"].astype(str) == newest]
            if frame.empty and name in _COLUMNS:
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
            quantisation=frames.get("computescale"),
        )

    @property
    def dtypes(self) -> tuple[str, ...]:
        """Dtypes whose GEMM was timed, bf16 first."""
        timed = set(self.gemm["gemm_dtype"])
        return tuple(name for name, spelled in TABLE_DTYPE.items() if spelled in timed)

    def gemm_rows(self, dtype: str) -> pd.DataFrame:
        """GEMM timings of one dtype, of matrices of at least 256 by 256."""
        large = self.gemm[["n", "k"]].min(axis=1) >= _LEAST_SIDE
        return self.gemm[large & (self.gemm["gemm_dtype"] == TABLE_DTYPE[dtype])]

    def quantisation_rows(self, dtype: str) -> pd.DataFrame | None:
        """Timings of the dynamic scaling that GEMM of this dtype includes, if there are any."""
        if self.quantisation is None:
            return None
        rows = self.quantisation[self.quantisation["quant_dtype"] == TABLE_DTYPE[dtype]]
        return None if rows.empty else rows

    def prefill_rows(self, dtype: str) -> pd.DataFrame:
        """Prefill attention that fills a KV cache of this dtype.

        Computed in it too, in a head_dim where that was timed about as widely as in bf16.
        """
        rows = _heads(self.prefill_attention)
        rows = rows[rows["kv_cache_dtype"] == TABLE_DTYPE[dtype]]
        native = rows["attn_dtype"] == TABLE_DTYPE[dtype]
        mostly = native.groupby(rows["head_dim"]).transform("mean") >= _MOSTLY
        return rows[native == mostly]

    def decode_rows(self, dtype: str) -> pd.DataFrame:
        """Decode attention over a KV cache of this dtype."""
        rows = _heads(self.decode_attention)
        return rows[rows["kv_cache_dtype"] == TABLE_DTYPE[dtype]]


def _heads(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of whole GQA groups, in the head dimensions that are fitted; 128 where none is told."""
    if "head_dim" not in rows.columns:
        rows = rows.assign(head_dim=128)
    heads, kv_heads = rows["num_heads"], rows["num_key_value_heads"]
    whole = (heads % kv_heads == 0) & (heads <= _LARGEST_GROUP * kv_heads)
    return rows[whole & rows["head_dim"].isin(HEAD_DIMS)]


def as_version(text: str) -> Version:
    """A version to compare by.

    Raises:
        InputError: it is none.
    """
    try:
        return Version(text)
    except InvalidVersion as error:
        raise InputError(f"{error} in a table", remedy="correct the version column") from error


def gpus_and_engines(folder: Path) -> dict[str, list[str]]:
    """The engines timed on each GPU.

    Raises:
        InputError: a table is missing, or lacks a column.
    """
    frame = _read(folder, "gemm")
    return {str(gpu): sorted(map(str, rows["fw"].unique())) for gpu, rows in frame.groupby("gpu")}


def _path(folder: Path, name: str) -> Path | None:
    paths = (folder / f"{name}.{end}" for end in ("csv.gz", "csv"))
    return next((path for path in paths if path.exists()), None)


def _read(folder: Path, name: str) -> pd.DataFrame:
    path = _path(folder, name)
    if path is None:
        raise InputError(
            f"{folder} has no {name}.csv.gz or {name}.csv",
            remedy=f"name a folder with {', '.join(_COLUMNS)} in the columns of aiconfigurator",
        )
    try:
        frame = pd.read_csv(path)
    except (ValueError, OSError, EOFError) as error:  # also bytes that are no text
        raise InputError(
            f"{path} is no whole table: {error}", remedy="download or write it again"
        ) from error
    own = (_COLUMNS | _OPTIONAL_COLUMNS)[name]
    wanted = _COMMON_COLUMNS | own | (_HEAD_COLUMNS if "attn" in name else set())
    missing = wanted - set(frame.columns)
    if missing:
        raise InputError(
            f"{path} has no column {', '.join(sorted(missing))}",
            remedy="use the columns of aiconfigurator, with gpu, fw and ver before them",
        )
    counted = sorted((wanted | _OPTIONAL_NUMBERS & set(frame.columns)) - _TEXT_COLUMNS)
    numbers = frame[counted].apply(pd.to_numeric, errors="coerce")
    wrong = ~(numbers.gt(0) & numbers.lt(_LARGEST)).all(axis=1)
    for rows, what in (
        (wrong, "a size or time that is no positive number"),
        (frame[sorted(wanted & _TEXT_COLUMNS)].isna().any(axis=1), "an empty cell"),
        (frame.duplicated(), "what another row has, time and all"),
    ):
        if rows.any():
            raise InputError(
                f"{path}, row {int(np.argmax(rows)) + 2} has {what}",
                remedy="correct or remove the row",
            )
    return frame.assign(**numbers)


# --- predictions of a table's rows -----------------------------------------------------------


def predict_gemm(
    rows: pd.DataFrame, dtype: str, sheet: Sheet, constants: GemmConstants
) -> Residuals:
    """GEMM rows, with the dynamic scaling that those of fp8 include."""
    m, n, k = (rows[name].to_numpy(np.float64) for name in ("m", "n", "k"))
    predicted = gemm_us(m, n, k, dtype=dtype, sheet=sheet, constants=constants, quantise=True)
    return _residuals("GEMM", dtype, rows, predicted, gemm_held_out(rows), np.zeros(len(m)))


def gemm_held_out(rows: pd.DataFrame) -> NDArray[np.bool_]:
    """Held-out rows of matrix products: whole matrices, n by k, with every m."""
    return held_out(rows["n"], rows["k"])


def predict_prefill(
    rows: pd.DataFrame, dtype: str, sheet: Sheet, constants: PrefillAttentionConstants
) -> Residuals:
    """Rows of prefill attention, whole prompts."""
    batch, length, heads, kv_heads = (rows[name].to_numpy() for name in _PREFILL_SHAPE)
    predicted = np.empty(len(rows))
    for head_dim in rows["head_dim"].unique():
        of = (rows["head_dim"] == head_dim).to_numpy()
        predicted[of] = prefill_attention_us(
            batch[of],
            length[of],
            length[of],
            heads=heads[of],
            kv_heads=kv_heads[of],
            head_dim=int(head_dim),
            dtype=dtype,
            sheet=sheet,
            constants=constants,
        )
    test = prefill_held_out(rows)
    return _residuals("prefill attention", dtype, rows, predicted, test, kv_heads)


def prefill_held_out(rows: pd.DataFrame) -> NDArray[np.bool_]:
    """Held-out rows of prefill attention: whole cells of batch x heads, length and KV heads."""
    return held_out(
        rows["batch_size"] * rows["num_heads"],
        rows["isl"],
        rows["num_key_value_heads"],
        rows["head_dim"],
    )


def predict_decode(
    rows: pd.DataFrame, dtype: str, sheet: Sheet, constants: DecodeAttentionConstants
) -> Residuals:
    """Rows of decode attention."""
    batch, length, heads, kv_heads = (rows[name].to_numpy() for name in _DECODE_SHAPE)
    predicted = np.empty(len(rows))
    for head_dim in rows["head_dim"].unique():
        of = (rows["head_dim"] == head_dim).to_numpy()
        predicted[of] = decode_attention_us(
            batch[of],
            length[of],
            heads=heads[of],
            kv_heads=kv_heads[of],
            head_dim=int(head_dim),
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
    return held_out(
        heads // kv_heads, rows["batch_size"] * kv_heads, rows["kv_len"], rows["head_dim"]
    )


def predict_all_reduce(
    rows: pd.DataFrame, sheet: Sheet, by_tp: Mapping[int, AllReduceLines]
) -> Residuals:
    """All-reduce rows; message sizes are in bf16 elements."""
    rows = rows[rows["num_gpus"].isin(list(by_tp))]
    gpus, size = rows["num_gpus"].to_numpy(), rows["message_size"].to_numpy()
    predicted = np.empty(len(rows))
    for tp, lines in by_tp.items():
        chosen = gpus == tp
        predicted[chosen] = all_reduce_us(2.0 * size[chosen], tp=tp, sheet=sheet, lines=lines)
    test = all_reduce_held_out(rows)
    return _residuals("all-reduce", "bf16", rows, predicted, test, np.zeros(len(rows)))


def all_reduce_held_out(rows: pd.DataFrame) -> NDArray[np.bool_]:
    """Held-out rows of the all-reduce: sizes by number of GPUs."""
    return held_out(rows["num_gpus"], rows["message_size"])


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
    """Every operator but experts, in every dtype that both the constants and the tables have."""
    found = []
    for dtype in tables.dtypes:
        if dtype in constants.dtypes:
            rows = tables.gemm_rows(dtype)
            found.append(predict_gemm(rows, dtype, sheet, constants.gemm[dtype]))
            if parse_dtype(dtype).kv_dtype == dtype and dtype in constants.decode_attention:
                prefill, decode = tables.prefill_rows(dtype), tables.decode_rows(dtype)
                found += [
                    predict_prefill(prefill, dtype, sheet, constants.prefill_attention[dtype]),
                    predict_decode(decode, dtype, sheet, constants.decode_attention[dtype]),
                ]
    if constants.all_reduce is not None and tables.all_reduce is not None:
        found.append(predict_all_reduce(tables.all_reduce, sheet, constants.all_reduce.by_tp))
    return found
