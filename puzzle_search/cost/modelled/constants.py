"""The numbers that a cost model holds: a device's data sheet and an engine's calibrated constants.

A device is a GPU; a processor fits the same form, with its cores for SMs and no link.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from puzzle_search.cost.latency import Evidence


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Where a group of constants comes from, and its relative error on points held out of the fit.

    The errors are None where nothing was fitted on the device and no measurement of it compared.
    """

    evidence: Evidence
    source: str
    error_median: float | None
    error_p90: float | None


@dataclass(frozen=True, kw_only=True)
class Sheet:
    """What the vendor and the driver say about the device.

    Rates are dense peaks; ``link_bytes_per_second`` is one direction, None without a link;
    ``flops_per_second`` holds the dtypes that the device computes in.
    """

    provenance: Provenance
    hbm_bytes: int
    reserve_bytes: int
    hbm_bytes_per_second: float
    link_bytes_per_second: float | None
    num_sms: int
    flops_per_second: Mapping[str, float]

    @property
    def memory_limit_bytes(self) -> int:
        """Bytes left for weights, KV cache and activations."""
        return self.hbm_bytes - self.reserve_bytes


@dataclass(frozen=True, kw_only=True)
class Tile:
    """Output tile of a GEMM kernel; ``cluster`` tiles, one above the other, run together.

    ``efficiency`` is the share of ``compute_fraction`` that the kernel of this tile reaches.
    """

    cluster: int
    rows: int
    columns: int
    efficiency: float = 1.0

    def __str__(self) -> str:
        size = f"{self.cluster}x{self.rows}x{self.columns}"
        share = f"{self.efficiency:.5g}"
        return size if share == "1" else f"{size}@{share}"


@dataclass(frozen=True, kw_only=True)
class GemmConstants:
    """One matrix product: smooth maximum of memory time and tiled compute time, plus a launch.

    ``tiles`` are the tiles that the library may use from so many rows on, up to the next entry; the
    best of them is taken, with the inner dimension split up to ``max_split`` times. ``corner`` is
    the exponent p of (memory^p + compute^p)^(1/p); ``tile_us`` the prologue and epilogue of a
    128x128 tile, ``tile_penalty`` the efficiency that small tiles lose, ``padding_penalty`` what a
    tile loses by rows beyond the matrix, ``split_us`` the reduction after a split,
    ``power_slowdown`` the clock lost per doubling of the work above 1 TFLOP; the two quantisation
    constants are the dynamic activation quantisation that static FP8 engines do not pay.
    """

    provenance: Provenance
    tiles: Mapping[int, tuple[Tile, ...]]
    max_split: int
    launch_us: float
    memory_fraction: float
    compute_fraction: float
    corner: float
    tile_us: float
    tile_penalty: float
    padding_penalty: float
    split_us: float
    power_slowdown: float
    quantisation_us: float
    quantisation_us_per_value: float


@dataclass(frozen=True, kw_only=True)
class PrefillAttentionConstants:
    """Causal attention over a prompt, with rope and the write into the KV cache.

    A smooth maximum, of exponent ``corner``, of ``launch_us`` and the work. Tiles of 128 queries
    compute whole: ``packs_groups`` says whether the query heads of one KV head share them, in half
    a tile where that is enough (FlashAttention), or not.
    ``block_tokens`` is the context that a tile computes in addition, by its mask and start-up;
    ``wave_share`` how far a last, half-filled wave over the SMs is hidden (1: entirely).
    """

    provenance: Provenance
    packs_groups: bool
    launch_us: float
    corner: float
    compute_fraction: float
    block_tokens: float
    wave_share: float
    us_per_sequence_head: float
    us_per_token: float
    us_per_token_query_head: float
    us_per_token_kv_head: float


@dataclass(frozen=True, kw_only=True)
class DecodeGroup:
    """Decode attention of one GQA group (query heads per KV head), head_dim 128.

    A first guess, floor + streams x ``us_per_stream`` + KV bytes at ``memory_fraction`` of the
    bandwidth, times the entry of ``ratio``, a table over the axes of `DecodeAttentionConstants`.
    A stream is one KV head of one sequence.
    """

    floor_us: float
    us_per_stream: float
    memory_fraction: float
    ratio: NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class DecodeAttentionConstants:
    """Decode attention by GQA group: which kernel runs, and how well, depends on the group.

    The axes of the groups' tables are log2(streams x context), ``work_log2``, and log2(context),
    ``context_log2``; a context below 64 tokens counts as 64 in the work.
    """

    provenance: Provenance
    work_log2: NDArray[np.float64]
    context_log2: NDArray[np.float64]
    groups: Mapping[int, DecodeGroup]


@dataclass(frozen=True, kw_only=True)
class ElementwiseConstants:
    """Kernels that only move data (norm and residual, gated activation, sampling)."""

    provenance: Provenance
    launch_us: float
    memory_fraction: float


@dataclass(frozen=True, kw_only=True)
class AllReduceConstants:
    """All-reduce within a node: the cheaper of a one-shot and a two-shot line, by TP degree."""

    provenance: Provenance
    by_tp: Mapping[int, AllReduceLines]


@dataclass(frozen=True, kw_only=True)
class AllReduceLines:
    """min(one_shot_us + one_shot_us_per_mib x, two_shot_us + two_shot_us_per_mib x), x in MiB."""

    one_shot_us: float
    one_shot_us_per_mib: float
    two_shot_us: float
    two_shot_us_per_mib: float


@dataclass(frozen=True, kw_only=True)
class StepConstants:
    """What an engine adds to its kernels: a scalar on all of them, and its own work in every step.

    That work is ``step_us`` + ``step_us_per_sequence`` x sequences + ``step_us_per_root_sequence``
    x sqrt(sequences) on any number of devices (scheduling, launching, sampling, passing tokens on),
    and ``rank_us_per_root_sequence`` x sqrt(sequences) more on several, which must agree on what
    runs next. Fitted to published maximum throughput it grows with the number of sequences less
    than in proportion, and is next to nothing for one; what TP costs besides is the all-reduce.
    ``max_batch`` is the most sequences, ``max_tokens`` the most new tokens that the engine takes in
    one step.
    """

    provenance: Provenance
    engine_scalar: float
    step_us: float
    step_us_per_sequence: float
    step_us_per_root_sequence: float
    rank_us_per_root_sequence: float
    max_batch: int
    max_tokens: int

    def engine_us(self, sequences: NDArray[np.float64], tp: int) -> NDArray[np.float64]:
        """Microseconds of the engine's own work in steps of so many sequences."""
        of_root = self.step_us_per_root_sequence + (tp > 1) * self.rank_us_per_root_sequence
        return self.step_us + self.step_us_per_sequence * sequences + of_root * np.sqrt(sequences)


@dataclass(frozen=True, kw_only=True)
class EngineConstants:
    """The calibrated constants of one serving engine on one device.

    The mappings by dtype hold any of ``fp8``, ``bf16`` and ``fp32``. Attention's dtype is that of
    the KV cache: an engine may compute in another (vLLM attends to an fp8 KV cache in bf16).
    ``all_reduce`` is None where a device stands alone.
    """

    version: str
    gemm: Mapping[str, GemmConstants]
    prefill_attention: Mapping[str, PrefillAttentionConstants]
    decode_attention: Mapping[str, DecodeAttentionConstants]
    elementwise: ElementwiseConstants
    all_reduce: AllReduceConstants | None
    step: StepConstants

    @property
    def dtypes(self) -> tuple[str, ...]:
        """Serving precisions that the constants cover."""
        return tuple(dtype for dtype in self.gemm if dtype in self.decode_attention)

    @property
    def tp_degrees(self) -> tuple[int, ...]:
        """Tensor-parallel degrees that the constants cover."""
        return (1, *(self.all_reduce.by_tp if self.all_reduce else ()))
