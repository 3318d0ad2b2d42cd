"""Operator timings of many GPUs, published in the package `aiconfigurator-core`.

Parquet under ``aiconfigurator_core/systems/data/<gpu>/<operator>/<engine>/<version>/``. What the
folders say is not trusted: the engine and its version are read from the rows, since some folders
hold copies of another version's file, or another engine's. Needs the extra ``silicon``.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from packaging.version import Version

from puzzle_search.cost.fitting.operator_tables import OperatorTables, as_version
from puzzle_search.cost.modelled.hardware import short_name
from puzzle_search.errors import InputError

PACKAGE = "aiconfigurator-core"
INSTALL = "pip install 'puzzle-search[silicon]'"
ENGINES = ("trtllm", "vllm", "sglang")

_FILES = {
    "gemm": ("gemm", "gemm_perf.parquet"),
    "quantisation": ("quantize", "computescale_perf.parquet"),
    "prefill": ("attention", "context_attention_perf.parquet"),
    "decode": ("attention", "generation_attention_perf.parquet"),
    "all-reduce": ("comm", "custom_allreduce_perf.parquet"),
    "experts": ("moe", "moe_perf.parquet"),
}
_HEADS = ("batch_size", "num_heads", "num_key_value_heads", "head_dim")
_KEYS = {
    "gemm": ("gemm_dtype", "m", "n", "k"),
    "quantisation": ("quant_dtype", "m", "k"),
    "prefill": ("attn_dtype", "kv_cache_dtype", *_HEADS, "isl"),
    "decode": ("kv_cache_dtype", *_HEADS, "kv_len"),
    "all-reduce": ("num_gpus", "message_size"),
    "experts": (
        *("moe_dtype", "distribution", "num_tokens", "num_experts", "topk"),
        *("hidden_size", "inter_size", "moe_tp_size", "moe_ep_size"),
    ),
}


@dataclass(frozen=True, kw_only=True)
class Silicon:
    """The tables of one GPU.

    ``gpu`` is its name in the package; ``source`` says which package, by name and version.
    """

    gpu: str
    folder: Path
    source: str

    @classmethod
    def installed(cls, gpu: str) -> Silicon:
        """The tables of a GPU in the installed package.

        Raises:
            InputError: the package is not installed, or knows no such GPU.
        """
        found = importlib.util.find_spec("aiconfigurator_core")
        if found is None or not found.submodule_search_locations:
            raise InputError(f"{PACKAGE} is not installed", remedy=INSTALL)
        root = Path(found.submodule_search_locations[0]) / "systems" / "data"
        version = importlib.metadata.version(PACKAGE)
        return cls.from_folder(root, gpu, source=f"{PACKAGE} {version} (Apache-2.0)")

    @classmethod
    def from_folder(cls, root: Path, gpu: str, *, source: str) -> Silicon:
        """The tables of a GPU in a folder laid out as the package's.

        Args:
            root: holds a folder for each GPU.
            gpu: its name there, or the name that a cost model ships under.
            source: of the tables, for the record.

        Raises:
            InputError: there is no such GPU, or nothing was timed on it.
        """
        timed = [path for path in sorted(root.glob("*")) if any((path / "gemm").glob("*/*/*"))]
        for folder in timed:
            if gpu.lower() in (folder.name, short_name(folder.name)):
                return cls(gpu=folder.name, folder=folder, source=source)
        raise InputError(
            f"{source} has no timings of {gpu!r}",
            remedy=f"use one of {', '.join(path.name for path in timed)}",
        )

    @property
    def engines(self) -> tuple[str, ...]:
        """Engines with matrix products, prefill and decode timed on the GPU."""
        return tuple(
            engine
            for engine in ENGINES
            if all(self._paths(name, engine) for name in ("gemm", "prefill", "decode"))
        )

    def tables(self, engine: str) -> OperatorTables:
        """The newest timings of an engine, operator by operator.

        Raises:
            InputError: the engine has no timings here, or a file cannot be read.
        """
        if engine not in self.engines:
            raise InputError(
                f"{self.source} has no timings of {self.gpu} with {engine!r}",
                remedy=f"use {' or '.join(self.engines)}",
            )
        frames = {name: self._newest(name, engine) for name in _FILES}
        gemm, prefill, decode = (frames[name] for name in ("gemm", "prefill", "decode"))
        assert gemm is not None
        assert prefill is not None
        assert decode is not None
        versions: dict[str, list[str]] = {}
        for name, frame in frames.items():
            if frame is not None:
                versions.setdefault(str(frame["version"].iloc[0]), []).append(name)
        main = str(gemm["version"].iloc[0])
        others = [f"{', '.join(of)} {v}" for v, of in versions.items() if v != main]
        return OperatorTables(
            version=main + (f" ({'; '.join(others)})" if others else ""),
            gemm=gemm,
            prefill_attention=prefill,
            decode_attention=decode,
            all_reduce=frames["all-reduce"],
            quantisation=frames["quantisation"],
            experts=frames["experts"],
        )

    def _paths(self, name: str, engine: str) -> list[Path]:
        operator, file = _FILES[name]
        return sorted((self.folder / operator / engine).glob(f"*/{file}"))

    def _newest(self, name: str, engine: str) -> pd.DataFrame | None:
        """Rows of the newest version, one for each shape; None where nothing was timed."""
        best: pd.DataFrame | None = None
        newest: Version | None = None
        for path in self._paths(name, engine):
            rows = _read(path, name)
            # Some folders hold another engine's file.
            rows = rows[rows["framework"].str.lower() == engine]
            for text, part in rows.groupby("version"):
                version = as_version(str(text))
                if newest is None or version > newest:
                    best, newest = part, version
        return None if best is None else _one_per_shape(best, name)


def _read(path: Path, name: str) -> pd.DataFrame:
    """The rows of a file as `OperatorTables` wants them: no window, one beam, microseconds."""
    try:
        rows = pd.read_parquet(path)
    except ImportError as error:
        raise InputError("pyarrow is not installed", remedy=INSTALL) from error
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is no Parquet file: {error}", remedy=f"{INSTALL} anew") from error
    if name == "decode" and {"isl", "step"} <= set(rows.columns):
        # `isl` is the token of the step, `step` what the cache holds before it.
        rows = rows.assign(kv_len=rows["isl"] + rows["step"])
    missing = {"framework", "version", "kernel_source", "latency", *_KEYS[name]} - set(rows.columns)
    if missing:
        raise InputError(
            f"{path} has no column {', '.join(sorted(missing))}", remedy=f"{INSTALL} anew"
        )
    for column, whole in (("window_size", 0), ("beam_width", 1)):
        if column in rows.columns:
            rows = rows[rows[column] == whole]
    rows = rows[np.isfinite(rows["latency"]) & (rows["latency"] > 0)]
    return rows.assign(us=rows["latency"] * 1e3)


def _one_per_shape(rows: pd.DataFrame, name: str) -> pd.DataFrame:
    """One row for each shape, of the kernel that an engine would take.

    Where all-reduce was timed eagerly and in a CUDA graph, serving uses the graph; of several
    kernels left, an engine takes the fastest for the size. Attention timed with two back ends: the
    one that was timed on more shapes is the engine's own on that GPU. Repeats: their median.
    """
    keys = list(_KEYS[name])
    if name == "all-reduce":
        graph = rows["kernel_source"].str.endswith("graph")
        rows = rows[graph] if graph.any() else rows
        return rows.sort_values("us").drop_duplicates(keys).sort_values(keys, ignore_index=True)
    kinds = [key for key in keys if key.endswith("dtype") or key == "head_dim"]
    shapes = rows.groupby([*kinds, "kernel_source"])["us"].transform("size")
    rows = rows.assign(shapes=shapes)
    rows = rows[rows["shapes"] == rows.groupby(keys)["shapes"].transform("max")]
    named = rows.groupby(keys, as_index=False).agg(
        us=("us", "median"), kernel_source=("kernel_source", "first"), version=("version", "first")
    )
    return named
