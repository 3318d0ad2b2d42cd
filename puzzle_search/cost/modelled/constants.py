"""The numbers that a cost model holds: a device's data sheet and an engine's calibrated constants.

A device is a GPU; a processor fits the same form, with its cores for SMs and no link.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from puzzle_search.cost.latency import Evidence
from puzzle_search.cost.memory import EXPERTS_ALONE, parse_dtype
from puzzle_search.cost.modelled.ratios import Ratios


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

    ``vendor`` is of the chip, in lower case: constants are carried within one vendor only. Rates
    are dense peaks; ``link_bytes_per_second`` is one direction, None without a link;
    ``flops_per_second`` holds the dtypes that the device computes in.
    """

    provenance: Provenance
    vendor: str
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
class GemmConstants:
    """One matrix product: launch + (memory^p + compute^p)^(1/p), times a ratio.

    ``corner`` is the exponent p. ``ratios`` has the axes ``rows``, ``columns``, ``inner`` and
    ``weights``, the entries of the matrix; it is None where single products were not timed. The two
    quantisation constants are the dynamic scaling of the activations, which engines with static
    scales do not pay.
    """

    provenance: Provenance
    launch_us: float
    memory_fraction: float
    compute_fraction: float
    corner: float
    ratios: Ratios | None
    quantisation_us: float
    quantisation_us_per_value: float


@dataclass(frozen=True, kw_only=True)
class ExpertsConstants:
    """The experts of a layer as one: both grouped products, activation, copies and weighted sum.

    The same form as of a matrix product, reading as many experts as a uniform router picks.
    ``ratios`` has the axes ``tokens``, ``experts`` and ``width``, on one device.
    """

    provenance: Provenance
    launch_us: float
    memory_fraction: float
    compute_fraction: float
    corner: float
    ratios: Ratios | None


@dataclass(frozen=True, kw_only=True)
class PrefillKernel:
    """Causal attention over a prompt, with rope and the write into the KV cache, in one head_dim.

    The same form as of a matrix product. ``ratios`` has the axes ``context``, ``queries``, all
    query heads of all tokens, and ``group``, query heads per KV head; None where not timed.
    """

    launch_us: float
    memory_fraction: float
    compute_fraction: float
    corner: float
    ratios: Ratios | None


@dataclass(frozen=True, kw_only=True)
class PrefillAttentionConstants:
    """Prefill attention by head_dim; between those, the nearest one's efficiency is used."""

    provenance: Provenance
    head_dims: Mapping[int, PrefillKernel]


@dataclass(frozen=True, kw_only=True)
class DecodeKernel:
    """Decode attention in one head_dim.

    Floor + streams x ``us_per_stream`` + KV bytes at ``memory_fraction`` of the bandwidth, times a
    ratio. A stream is one KV head of one sequence. ``ratios`` has the axes ``work``, streams x
    context, ``context``, ``group``, query heads per KV head, and ``streams``; None where not timed.
    ``ceiling_fraction`` is the largest share of the bandwidth that any timing reached: none is
    predicted to reach more.
    """

    floor_us: float
    us_per_stream: float
    memory_fraction: float
    ceiling_fraction: float
    ratios: Ratios | None


@dataclass(frozen=True, kw_only=True)
class DecodeAttentionConstants:
    """Decode attention by head_dim; between those, the nearest one's efficiency is used."""

    provenance: Provenance
    head_dims: Mapping[int, DecodeKernel]


@dataclass(frozen=True, kw_only=True)
class ElementwiseConstants:
    """Kernels that only move data (norm and residual, gated activation, sampling)."""

    provenance: Provenance
    launch_us: float
    memory_fraction: float


@dataclass(frozen=True, kw_only=True)
class AllReduceConstants:
    """All-reduce within a node, by TP degree."""

    provenance: Provenance
    by_tp: Mapping[int, AllReduceLines]


@dataclass(frozen=True, kw_only=True)
class AllReduceLines:
    """Latency over the size of the message: lines between the sizes that were timed, in logarithms.

    Below the first size its latency holds, beyond the last one its bytes per second.
    """

    message_bytes: NDArray[np.float64]
    us: NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class StepConstants:
    """What an engine adds to its kernels: a scalar on all of them, and its own work in every step.

    That work is ``step_us`` + ``step_us_per_sequence`` x sequences + ``step_us_per_root_sequence``
    x sqrt(sequences) / devices (what the devices share, such as attention to caches of unlike
    length), and ``rank_us_per_root_sequence`` x sqrt(sequences) more on several, which must agree
    on what runs next. Fitted to published maximum throughput it grows with the sequences less than
    in proportion, and is next to nothing for one; what TP costs besides is the all-reduce.
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
        of_root = self.step_us_per_root_sequence / tp + (tp > 1) * self.rank_us_per_root_sequence
        return self.step_us + self.step_us_per_sequence * sequences + of_root * np.sqrt(sequences)


@dataclass(frozen=True, kw_only=True)
class EngineConstants:
    """The calibrated constants of one serving engine on one device.

    The mappings by dtype hold any of ``nvfp4``, ``fp8``, ``bf16``, ``fp32``. Attention's dtype is
    that of the KV cache, fp8 under nvfp4: an engine may compute in another (vLLM attends to an fp8
    KV cache in bf16).
    ``all_reduce`` is None where a device stands alone. ``experts`` are by their own dtype; those of
    another are priced by products (`AnalyticLatency.experts_us`).
    """

    version: str
    gemm: Mapping[str, GemmConstants]
    prefill_attention: Mapping[str, PrefillAttentionConstants]
    decode_attention: Mapping[str, DecodeAttentionConstants]
    elementwise: ElementwiseConstants
    all_reduce: AllReduceConstants | None
    step: StepConstants
    experts: Mapping[str, ExpertsConstants] = field(default_factory=dict)

    @property
    def dtypes(self) -> tuple[str, ...]:
        """Serving precisions that the constants cover."""
        return tuple(
            name
            for name in (*self.gemm, *EXPERTS_ALONE)
            if parse_dtype(name).kv_dtype in self.decode_attention
            and {parse_dtype(name).vector_dtype, parse_dtype(name).product_dtype}
            <= self.gemm.keys()
            and parse_dtype(name).expert_dtype in (None, *self.experts)
        )

    @property
    def tp_degrees(self) -> tuple[int, ...]:
        """Tensor-parallel degrees that the constants cover."""
        return (1, *(self.all_reduce.by_tp if self.all_reduce else ()))
