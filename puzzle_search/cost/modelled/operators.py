"""What one operator costs on a GPU: a roofline, a launch, and ratios where it was timed.

Pure functions of a shape, a data sheet and calibrated constants, all in microseconds. None is ever
faster than the sheet allows. `puzzle_search.cost.fitting` fits the constants.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from puzzle_search.cost.experts import distinct_experts
from puzzle_search.cost.latency import Microseconds
from puzzle_search.cost.modelled.constants import (
    AllReduceLines,
    DecodeAttentionConstants,
    DecodeKernel,
    ElementwiseConstants,
    ExpertsConstants,
    GemmConstants,
    PrefillAttentionConstants,
    PrefillKernel,
    Sheet,
)
from puzzle_search.cost.modelled.ratios import Ratios

EXPERT_BYTES = {"mxfp4": 1 / 2 + 1 / 32}
"""Bytes of a weight of experts whose activations stay bf16."""
BYTES_PER_VALUE = {"nvfp4": 1 / 2 + 1 / 16, "fp8": 1.0, "bf16": 2.0, "fp32": 4.0}
"""Bytes of a weight, an activation or a KV value, block scales included."""
STREAM_BYTES = {"nvfp4": 2, "fp8": 2, "bf16": 2, "fp32": 4}
"""Bytes of a value of the residual stream, which a GEMM of that dtype writes."""

_Array = NDArray[np.float64]
_US = 1e6

KV_BLOCK_TOKENS = 64
"""Tokens of a KV cache block: decode attention over a shorter context costs as much."""
# Queries of one head that a thread block of the prefill kernel takes, at the least.
_QUERY_TILE = 64


def gemm_us(
    rows: ArrayLike,
    columns: ArrayLike,
    inner: ArrayLike,
    *,
    dtype: str,
    sheet: Sheet,
    constants: GemmConstants,
    quantise: bool = False,
) -> Microseconds:
    """Microseconds of an (m x k) by (k x n) product, written in the dtype of the residual stream.

    Never less than the hardware's own limit; see `GemmConstants`.

    Args:
        rows: m, tokens.
        columns: n, output features.
        inner: k, input features.
        dtype: of activations and weights.
        sheet: the GPU.
        constants: of this dtype.
        quantise: charge the dynamic scaling of the activations.
    """
    m, n, k = (np.asarray(x, np.float64) for x in (rows, columns, inner))
    memory_us, compute_us = gemm_limits_us(m, n, k, dtype=dtype, sheet=sheet)
    guess_us = roofline_us(memory_us, compute_us, constants)
    ratio = gemm_ratio(m, n, k, constants.ratios)
    latency_us = np.maximum(guess_us * ratio, np.maximum(memory_us, compute_us))
    return np.asarray(latency_us + _quantisation_us(m * k, constants) if quantise else latency_us)


def grouped_gemm_us(
    rows: ArrayLike,
    columns: ArrayLike,
    inner: ArrayLike,
    groups: ArrayLike,
    *,
    dtype: str,
    sheet: Sheet,
    constants: GemmConstants,
    quantise: bool = False,
) -> Microseconds:
    """Microseconds of products with several (k x n) matrices, as many rows each, in one launch.

    The roofline of one product, which reads every matrix once. Nothing of the kind was timed, so
    that no ratios are known; never less than the hardware's own limit.

    Args:
        rows: of all products together.
        columns: n, output features of each.
        inner: k, input features of each.
        groups: matrices.
        dtype: of activations and weights.
        sheet: the GPU.
        constants: of a single product in this dtype.
        quantise: charge the dynamic scaling of the activations.
    """
    m, n, k, g = (np.asarray(x, np.float64) for x in (rows, columns, inner, groups))
    memory_us, compute_us = (
        g * limit_us for limit_us in gemm_limits_us(m / g, n, k, dtype=dtype, sheet=sheet)
    )
    guess_us = roofline_us(memory_us, compute_us, constants)
    latency_us = np.maximum(guess_us, np.maximum(memory_us, compute_us))
    return np.asarray(latency_us + _quantisation_us(m * k, constants) if quantise else latency_us)


def experts_us(
    tokens: ArrayLike,
    *,
    experts: ArrayLike,
    top_k: ArrayLike,
    hidden: ArrayLike,
    width: ArrayLike,
    dtype: str,
    sheet: Sheet,
    constants: ExpertsConstants,
) -> Microseconds:
    """Microseconds of a layer's experts for so many tokens, without the router.

    Never less than the hardware's own limit for as many experts as a uniform router picks.

    Args:
        tokens: of the step.
        experts: of the layer.
        top_k: that a token passes.
        hidden: size of the residual stream.
        width: of an expert, on one device.
        dtype: of the experts' weights; activations are bf16.
        sheet: the GPU.
        constants: of this dtype.
    """
    t, x, k, d, w = np.broadcast_arrays(
        *(np.asarray(size, np.float64) for size in (tokens, experts, top_k, hidden, width))
    )
    limits = experts_limits_us(t, x, k, d, w, dtype=dtype, sheet=sheet)
    guess_us = roofline_us(*limits, constants)
    if constants.ratios is not None:
        guess_us = guess_us * constants.ratios.at(tokens=t, experts=x, width=w)
    return np.asarray(np.maximum(guess_us, np.maximum(*limits)))


def experts_limits_us(
    tokens: _Array,
    experts: _Array,
    top_k: _Array,
    hidden: _Array,
    width: _Array,
    *,
    dtype: str,
    sheet: Sheet,
) -> tuple[Microseconds, Microseconds]:
    """Microseconds of a layer's experts at the sheet's bandwidth, and at its peak."""
    read = distinct_experts(experts, top_k, tokens)
    moved_bytes = EXPERT_BYTES[dtype] * read * 3 * width * hidden
    moved_bytes = moved_bytes + 2 * STREAM_BYTES["bf16"] * tokens * hidden
    flops = 6 * tokens * top_k * width * hidden
    return (
        moved_bytes / (sheet.hbm_bytes_per_second / _US),
        flops / (sheet.flops_per_second["bf16"] / _US),
    )


def _quantisation_us(values: _Array, constants: GemmConstants) -> _Array:
    """Microseconds of the dynamic scaling of so many activations."""
    return constants.quantisation_us + constants.quantisation_us_per_value * values


def gemm_limits_us(
    rows: _Array, columns: _Array, inner: _Array, *, dtype: str, sheet: Sheet
) -> tuple[Microseconds, Microseconds]:
    """Microseconds of a matrix product at the sheet's bandwidth, and at its peak."""
    values = rows * inner + columns * inner
    moved_bytes = BYTES_PER_VALUE[dtype] * values + STREAM_BYTES[dtype] * rows * columns
    flops = 2 * rows * columns * inner
    return (
        moved_bytes / (sheet.hbm_bytes_per_second / _US),
        flops / (sheet.flops_per_second[dtype] / _US),
    )


def gemm_ratio(rows: _Array, columns: _Array, inner: _Array, ratios: Ratios | None) -> Microseconds:
    """What the roofline of a matrix product is multiplied by."""
    if ratios is None:
        return np.ones(())
    return ratios.at(rows=rows, columns=columns, inner=inner, weights=columns * inner)


def roofline_us(
    memory_us: _Array,
    compute_us: _Array,
    constants: GemmConstants | ExpertsConstants | PrefillKernel,
) -> Microseconds:
    """Launch and a smooth maximum of both limits, each at its fraction."""
    memory = memory_us / constants.memory_fraction
    compute = compute_us / constants.compute_fraction
    longer, shorter = np.maximum(memory, compute), np.minimum(memory, compute)
    # The larger one is taken out, so that a sharp corner (a large p) does not overflow.
    p = constants.corner
    return np.asarray(constants.launch_us + longer * (1 + (shorter / longer) ** p) ** (1 / p))


def prefill_attention_us(
    batch: ArrayLike,
    tokens: ArrayLike,
    context: ArrayLike,
    *,
    heads: ArrayLike,
    kv_heads: ArrayLike,
    head_dim: int,
    dtype: str,
    sheet: Sheet,
    constants: PrefillAttentionConstants,
    attended: ArrayLike | None = None,
) -> Microseconds:
    """Microseconds of causal attention of a batch: the last ``tokens`` of ``context`` attend.

    Never less than the hardware's own limit; see `PrefillKernel`. Under a window ``context`` are
    the tokens that any of the new ones attends to, and ``attended`` those that each does on
    average; without one that is all before it.
    """
    b, new, length, h, kv = (
        np.asarray(x, np.float64) for x in (batch, tokens, context, heads, kv_heads)
    )
    mean = _causal_mean(new, length) if attended is None else np.asarray(attended, np.float64)
    kernel = constants.head_dims[nearest(head_dim, constants.head_dims)]
    guess_us = prefill_guess_us(
        b, new, length, h, kv, mean, head_dim=head_dim, dtype=dtype, sheet=sheet, kernel=kernel
    )
    ratio = prefill_ratio(b, new, length, h, kv, kernel.ratios)
    flops = 4 * head_dim * b * h * new * mean
    moved_bytes = BYTES_PER_VALUE[dtype] * head_dim * b * 2 * (h * new + kv * length)
    limit_us = np.maximum(
        flops / (sheet.flops_per_second[dtype] / _US),
        moved_bytes / (sheet.hbm_bytes_per_second / _US),
    )
    return np.asarray(np.maximum(guess_us * ratio, limit_us))


def prefill_guess_us(
    batch: _Array,
    tokens: _Array,
    context: _Array,
    heads: _Array,
    kv_heads: _Array,
    attended: _Array | None = None,
    *,
    head_dim: int,
    dtype: str,
    sheet: Sheet,
    kernel: PrefillKernel,
) -> Microseconds:
    """The roofline of `PrefillKernel`: queries in whole tiles, and rope and cache in memory."""
    mean = _causal_mean(tokens, context) if attended is None else attended
    queries = np.maximum(tokens, _QUERY_TILE)
    flops = 4 * head_dim * batch * heads * queries * mean
    # Queries, keys and values come in the dtype of the residual stream; the cache is written, read.
    stream, value = STREAM_BYTES[dtype], BYTES_PER_VALUE[dtype]
    per_token = 2 * stream * (heads + kv_heads) * tokens + 2 * value * kv_heads * context
    return roofline_us(
        batch * head_dim * per_token / (sheet.hbm_bytes_per_second / _US),
        flops / (sheet.flops_per_second[dtype] / _US),
        kernel,
    )


def _causal_mean(tokens: _Array, context: _Array) -> _Array:
    """Tokens that each of the last ``tokens`` of ``context`` attends to, on average."""
    return context - (tokens - 1) / 2


def prefill_ratio(
    batch: _Array,
    tokens: _Array,
    context: _Array,
    heads: _Array,
    kv_heads: _Array,
    ratios: Ratios | None,
) -> Microseconds:
    """What the roofline of prefill attention is multiplied by."""
    if ratios is None:
        return np.ones(())
    return ratios.at(context=context, queries=batch * heads * tokens, group=heads / kv_heads)


def decode_attention_us(
    batch: ArrayLike,
    context: ArrayLike,
    *,
    heads: ArrayLike,
    kv_heads: ArrayLike,
    head_dim: int,
    dtype: str,
    sheet: Sheet,
    constants: DecodeAttentionConstants,
) -> Microseconds:
    """Microseconds of one decode step's attention, one new token per sequence.

    Never less than the hardware's own limit; see `DecodeKernel`.
    """
    b, length, h, kv = (np.asarray(x, np.float64) for x in (batch, context, heads, kv_heads))
    streams = b * kv
    kernel = constants.head_dims[nearest(head_dim, constants.head_dims)]
    guess_us = decode_guess_us(
        streams, length, head_dim=head_dim, dtype=dtype, sheet=sheet, kernel=kernel
    )
    ratio = decode_ratio(streams, length, h / kv, kernel.ratios)
    kv_bytes = 2 * head_dim * BYTES_PER_VALUE[dtype] * streams * length
    reached = kernel.ceiling_fraction * sheet.hbm_bytes_per_second / _US
    return np.asarray(np.maximum(guess_us * ratio, kv_bytes / reached))


def decode_guess_us(
    streams: _Array,
    context: _Array,
    *,
    head_dim: int,
    dtype: str,
    sheet: Sheet,
    kernel: DecodeKernel,
) -> Microseconds:
    """The first guess of `DecodeKernel`; kernels read whole KV blocks."""
    padded = np.maximum(context, KV_BLOCK_TOKENS)
    kv_bytes = 2 * head_dim * BYTES_PER_VALUE[dtype] * streams * padded
    bandwidth = kernel.memory_fraction * sheet.hbm_bytes_per_second / _US
    return np.asarray(kernel.floor_us + kernel.us_per_stream * streams + kv_bytes / bandwidth)


def decode_ratio(
    streams: _Array, context: _Array, group: _Array, ratios: Ratios | None
) -> Microseconds:
    """What the first guess of decode attention is multiplied by.

    More work than was timed has the ratio of the most that was: efficiency holds.
    """
    if ratios is None:
        return np.ones(())
    context = np.minimum(context, ratios.axes["context"][-1])
    padded = np.maximum(context, KV_BLOCK_TOKENS)
    streams = np.minimum(streams, ratios.axes["work"][-1] / padded)
    return ratios.at(work=streams * padded, context=context, group=group, streams=streams)


def nearest(head_dim: int, known: Iterable[int]) -> int:
    """The calibrated head_dim whose ratio to this one is closest to 1."""
    return min(known, key=lambda other: abs(np.log(other / head_dim)))


def elementwise_us(
    moved_bytes: ArrayLike, *, sheet: Sheet, constants: ElementwiseConstants
) -> Microseconds:
    """Microseconds of one kernel that only moves data."""
    bandwidth = constants.memory_fraction * sheet.hbm_bytes_per_second / _US
    return constants.launch_us + np.asarray(moved_bytes, np.float64) / bandwidth


def all_reduce_us(
    message_bytes: ArrayLike, *, tp: int, sheet: Sheet, lines: AllReduceLines
) -> Microseconds:
    """Microseconds of one all-reduce among ``tp`` GPUs, ``message_bytes`` on each.

    The sheet must name a link between them.
    """
    assert sheet.link_bytes_per_second is not None
    size = np.asarray(message_bytes, np.float64)
    known = np.log(lines.message_bytes)
    timed_us = np.exp(np.interp(np.log(size), known, np.log(lines.us)))
    timed_us = timed_us * np.maximum(1.0, size / lines.message_bytes[-1])
    # A GPU must at least send and receive its (tp - 1) / tp of the message.
    limit_us = size * (tp - 1) / tp / (sheet.link_bytes_per_second / _US)
    return np.asarray(np.maximum(timed_us, limit_us))
