"""What one operator costs on a GPU: rooflines with tiles, waves and overheads.

Pure functions of a shape, a data sheet and calibrated constants, all in microseconds. None is ever
faster than the sheet allows. `puzzle_search.cost.fitting.calibrate` fits the constants.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from puzzle_search.cost.latency import Microseconds
from puzzle_search.cost.modelled.constants import (
    AllReduceLines,
    DecodeAttentionConstants,
    DecodeGroup,
    ElementwiseConstants,
    GemmConstants,
    PrefillAttentionConstants,
    Sheet,
    Tile,
)

BYTES_PER_VALUE = {"fp8": 1, "bf16": 2, "fp32": 4}
"""Bytes of a weight, an activation or a KV value."""
STREAM_BYTES = {"fp8": 2, "bf16": 2, "fp32": 4}
"""Bytes of a value of the residual stream, which a GEMM of that dtype writes."""

_Array = NDArray[np.float64]
_MIB = 2.0**20
_US = 1e6

# Ways to split the inner dimension of a GEMM over more thread blocks.
_SPLITS = (1, 2, 4, 8)

HEAD_DIM = 128
"""Head dimension of the attention kernels that the constants were fitted on."""
KV_BLOCK_TOKENS = 64
"""Tokens of a KV cache block: decode attention over a shorter context costs as much."""
# Queries of one head that a thread block of the prefill kernel takes.
_QUERY_TILE = 128


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

    The time is launch + (memory^p + compute^p)^(1/p), where compute is the cheapest of the tilings
    in whole waves over the SMs, but never less than the hardware's own limit.

    Args:
        rows: m, tokens.
        columns: n, output features.
        inner: k, input features.
        dtype: of activations and weights.
        sheet: the GPU.
        constants: of this dtype.
        quantise: charge the dynamic quantisation of the activations.
    """
    m, n, k = np.broadcast_arrays(*(np.asarray(x, np.float64) for x in (rows, columns, inner)))
    flops = 2 * m * n * k
    moved_bytes = BYTES_PER_VALUE[dtype] * (m * k + n * k) + STREAM_BYTES[dtype] * m * n
    peak = sheet.flops_per_second[dtype] / _US
    bandwidth = sheet.hbm_bytes_per_second / _US

    sm_peak = constants.compute_fraction * peak / sheet.num_sms
    compute = np.empty(m.shape)
    for from_rows, tiles in constants.tiles.items():
        tier = m >= from_rows
        compute[tier] = _tiled_us(m[tier], n[tier], k[tier], tiles, sm_peak, sheet, constants)
    compute *= 1 + constants.power_slowdown * np.log2(1 + flops / 1e12)

    memory = moved_bytes / (constants.memory_fraction * bandwidth)
    longer, shorter = np.maximum(memory, compute), np.minimum(memory, compute)
    # The larger one is taken out, so that a sharp corner (a large p) does not overflow.
    p = constants.corner
    both = longer * (1 + (shorter / longer) ** p) ** (1 / p)
    limit = np.maximum(moved_bytes / bandwidth, flops / peak)
    latency_us = np.maximum(constants.launch_us + both, limit)
    if quantise:
        latency_us = latency_us + constants.quantisation_us
        latency_us += constants.quantisation_us_per_value * m * k
    return np.asarray(latency_us)


def _tiled_us(
    rows: _Array,
    columns: _Array,
    inner: _Array,
    tiles: Sequence[Tile],
    sm_peak: float,
    sheet: Sheet,
    constants: GemmConstants,
) -> Microseconds:
    """Compute time in whole waves over the SMs, with the best of some tiles and splits."""
    ways = [
        (tile.cluster * tile.rows, tile.rows, tile.columns, tile.efficiency, split)
        for tile in tiles
        for split in _SPLITS
        if split <= constants.max_split
    ]
    cluster_rows, tile_rows, tile_columns, efficiency, split = np.array(ways, np.float64).T
    m, n, k = (size[..., None] for size in (rows, columns, inner))
    padded_rows = np.ceil(m / cluster_rows) * cluster_rows
    waves = np.ceil(padded_rows / tile_rows * np.ceil(n / tile_columns) * (split / sheet.num_sms))
    penalty = 1 + constants.tile_penalty * 64 * (1 / tile_rows + 1 / tile_columns)
    penalty = penalty * (1 + constants.padding_penalty * (1 - m / padded_rows))
    inside_us = 2 * tile_rows * tile_columns / (split * efficiency * sm_peak) * penalty * k
    around_us = constants.tile_us * tile_rows * tile_columns / 128**2
    split_us = np.where(split > 1, constants.split_us, 0.0)
    return np.asarray(np.min(waves * (inside_us + around_us) + split_us, axis=-1))


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
) -> Microseconds:
    """Microseconds of causal attention of a batch: the last ``tokens`` of ``context`` attend.

    Never less than the hardware's own limit; see `PrefillAttentionConstants`.
    """
    b, new, length, h, kv = np.broadcast_arrays(
        *(np.asarray(x, np.float64) for x in (batch, tokens, context, heads, kv_heads))
    )
    peak = sheet.flops_per_second[dtype] / _US
    mean_context = length - (new - 1) / 2
    if constants.packs_groups:
        queries = new * h / kv
        tile = np.where(queries > _QUERY_TILE / 2, _QUERY_TILE, _QUERY_TILE / 2)
        tiles = b * kv * np.ceil(queries / tile)
    else:
        tile = np.asarray(_QUERY_TILE)
        tiles = b * h * np.ceil(new / tile)
    flops = 4 * head_dim * tile * tiles * (mean_context + constants.block_tokens)
    whole_waves = np.ceil(tiles / sheet.num_sms) * sheet.num_sms / tiles
    waves = constants.wave_share + (1 - constants.wave_share) * whole_waves
    work = flops * waves / (constants.compute_fraction * peak) + b * (
        constants.us_per_sequence_head * h
        + constants.us_per_token * new
        + constants.us_per_token_query_head * new * h * (head_dim / HEAD_DIM)
        + constants.us_per_token_kv_head * new * kv * (head_dim / HEAD_DIM)
    )
    p = constants.corner
    longer, shorter = np.maximum(constants.launch_us, work), np.minimum(constants.launch_us, work)
    moved_bytes = BYTES_PER_VALUE[dtype] * head_dim * b * 2 * (h * new + kv * length)
    bandwidth = sheet.hbm_bytes_per_second / _US
    limit = np.maximum(4 * head_dim * b * h * new * mean_context / peak, moved_bytes / bandwidth)
    return np.asarray(np.maximum(longer * (1 + (shorter / longer) ** p) ** (1 / p), limit))


def decode_attention_us(
    batch: ArrayLike,
    context: ArrayLike,
    *,
    heads: int,
    kv_heads: int,
    head_dim: int,
    dtype: str,
    sheet: Sheet,
    constants: DecodeAttentionConstants,
) -> Microseconds:
    """Microseconds of one decode step's attention, one new token per sequence.

    GQA groups between two calibrated ones are interpolated; beyond the largest, it is used.
    """
    b, length = np.broadcast_arrays(np.asarray(batch, np.float64), np.asarray(context, np.float64))
    streams = b * (kv_heads * head_dim / HEAD_DIM)
    groups = list(constants.groups)
    group = min(max(heads / kv_heads, groups[0]), groups[-1])
    below = max(known for known in groups if known <= group)
    above = min(known for known in groups if known >= group)
    weights, cells = table_cells(constants.work_log2, constants.context_log2, streams, length)

    def of_group(known: int) -> _Array:
        entry = constants.groups[known]
        ratio = np.sum(weights * entry.ratio.ravel()[cells], axis=0)
        guess_us = decode_guess_us(streams, length, entry=entry, dtype=dtype, sheet=sheet)
        return np.asarray(guess_us * ratio)

    latency_us = of_group(below)
    if above > below:
        share = np.log2(group / below) / np.log2(above / below)
        latency_us = latency_us ** (1 - share) * of_group(above) ** share
    kv_bytes = 2 * HEAD_DIM * BYTES_PER_VALUE[dtype] * streams * length
    return np.asarray(np.maximum(latency_us, kv_bytes / (sheet.hbm_bytes_per_second / _US)))


def decode_guess_us(
    streams: _Array, context: _Array, *, entry: DecodeGroup, dtype: str, sheet: Sheet
) -> Microseconds:
    """The first guess of `DecodeGroup`, before its table; kernels read whole KV blocks."""
    padded = np.maximum(context, KV_BLOCK_TOKENS)
    kv_bytes = 2 * HEAD_DIM * BYTES_PER_VALUE[dtype] * streams * padded
    bandwidth = entry.memory_fraction * sheet.hbm_bytes_per_second / _US
    return np.asarray(entry.floor_us + entry.us_per_stream * streams + kv_bytes / bandwidth)


def table_cells(
    work_log2: _Array, context_log2: _Array, streams: _Array, context: _Array
) -> tuple[_Array, NDArray[np.intp]]:
    """Bilinear weights and flat indices of the four table entries around each point.

    Both have a leading axis of four; points outside the table take its edge.
    """
    span = np.log2(context)
    work = np.log2(streams * np.maximum(context, KV_BLOCK_TOKENS))
    i, s = _knots(work_log2, work)
    j, t = _knots(context_log2, span)
    weights = np.stack([(1 - s) * (1 - t), (1 - s) * t, s * (1 - t), s * t])
    first = i * len(context_log2) + j
    return weights, np.stack(
        [first, first + 1, first + len(context_log2), first + len(context_log2) + 1]
    )


def _knots(axis: _Array, position: _Array) -> tuple[NDArray[np.intp], _Array]:
    """Index of the knot below each position and the share of the next one, clipped to the axis."""
    clipped = np.clip(position, axis[0], axis[-1])
    index = np.clip(np.searchsorted(axis, clipped, side="right") - 1, 0, len(axis) - 2)
    return index, (clipped - axis[index]) / (axis[index + 1] - axis[index])


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
    mib = size / _MIB
    one_shot = lines.one_shot_us + lines.one_shot_us_per_mib * mib
    two_shot = lines.two_shot_us + lines.two_shot_us_per_mib * mib
    # A GPU must at least send and receive its (tp - 1) / tp of the message.
    limit = size * (tp - 1) / tp / (sheet.link_bytes_per_second / _US)
    return np.maximum(np.minimum(one_shot, two_shot), limit)
