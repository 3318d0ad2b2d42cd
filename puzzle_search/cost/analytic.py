"""Latency from a GPU's calibrated constants: a roofline with tiles, waves and overheads.

Used where no profile exists. `puzzle_search.cost.calibrate` fits these functions' constants.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from puzzle_search.arch import Gqa, Mlp, NoOp, ParentConfig, Subblock, parse_variant
from puzzle_search.cost.constants import (
    AllReduceLines,
    DecodeAttentionConstants,
    DecodeGroup,
    ElementwiseConstants,
    GemmConstants,
    PrefillAttentionConstants,
    Sheet,
)
from puzzle_search.cost.hardware import DTYPES, CostModel
from puzzle_search.cost.latency import Evidence, Microseconds, Phase
from puzzle_search.errors import InputError

BYTES_PER_VALUE = {"bf16": 2, "fp8": 1}
"""Bytes of a weight, an activation or a KV value."""

_Array = NDArray[np.float64]
_MIB = 2.0**20
_US = 1e6

# Output tiles (rows, columns) that GEMM kernels of this generation use, and ways to split k.
_TILES = ((64, 64), (64, 128), (128, 64), (128, 128), (64, 256), (128, 256), (256, 128))
_SPLITS = (1, 2, 4, 8)
_TILE_ROWS, _TILE_COLUMNS, _SPLIT = (
    np.array(column, dtype=np.float64)
    for column in zip(*((*tile, split) for tile in _TILES for split in _SPLITS), strict=True)
)

# The head dimension of the attention kernels that the constants were fitted on.
_HEAD_DIM = 128
# Tokens of a KV cache block: a shorter context costs as much as this one.
_KV_BLOCK_TOKENS = 64
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
    max_rows: float = np.inf,
    quantise: bool = False,
) -> Microseconds:
    """Microseconds of an (m x k) by (k x n) product with bf16 output.

    The time is launch + (memory^p + compute^p)^(1/p), where compute is the cheapest of the tilings
    in whole waves over the SMs, but never less than the hardware's own limit.

    Args:
        rows: m, tokens.
        columns: n, output features.
        inner: k, input features.
        dtype: of activations and weights.
        sheet: the GPU.
        constants: of this dtype.
        max_rows: more rows are done in chunks of this size.
        quantise: charge the dynamic quantisation of the activations.
    """
    all_rows, n, k = np.broadcast_arrays(
        *(np.asarray(x, np.float64) for x in (rows, columns, inner))
    )
    m = np.minimum(all_rows, max_rows)
    flops = 2 * m * n * k
    moved_bytes = BYTES_PER_VALUE[dtype] * (m * k + n * k) + 2 * m * n
    peak = sheet.flops_per_second[dtype] / _US
    bandwidth = sheet.hbm_bytes_per_second / _US

    waves = np.ceil(
        np.ceil(m[..., None] / _TILE_ROWS)
        * np.ceil(n[..., None] / _TILE_COLUMNS)
        * (_SPLIT / sheet.num_sms)
    )
    tile_area = _TILE_ROWS * _TILE_COLUMNS
    penalty = 1 + constants.tile_penalty * 64 * (1 / _TILE_ROWS + 1 / _TILE_COLUMNS)
    sm_peak = peak / sheet.num_sms * constants.compute_fraction
    per_value_us = 2 * tile_area / _SPLIT * penalty / sm_peak
    per_tile_us = constants.tile_us * tile_area / 128**2
    tiled = waves * (per_value_us * k[..., None] + per_tile_us)
    compute = np.min(tiled + np.where(_SPLIT > 1, constants.split_us, 0), axis=-1)
    compute *= 1 + constants.power_slowdown * np.log2(1 + flops / 1e12)

    memory = moved_bytes / (constants.memory_fraction * bandwidth)
    p = constants.corner
    both = (memory**p + compute**p) ** (1 / p)
    limit = np.maximum(moved_bytes / bandwidth, flops / peak)
    latency_us = np.maximum(constants.launch_us + both, limit)
    if quantise:
        latency_us = latency_us + constants.quantisation_us
        latency_us += constants.quantisation_us_per_value * m * k
    return np.asarray(latency_us * (all_rows / m))


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
    """Microseconds of causal attention of a batch: the last ``tokens`` of ``context`` attend."""
    b, new, length, h, kv = np.broadcast_arrays(
        *(np.asarray(x, np.float64) for x in (batch, tokens, context, heads, kv_heads))
    )
    peak = sheet.flops_per_second[dtype] / _US
    pairs = new * (length - (new - 1) / 2)
    flops_per_pair = 4 * head_dim * b * h
    ramp = 1 + constants.ramp_tokens / length
    blocks = b * h * np.ceil(new / _QUERY_TILE)
    fill = 1 + constants.fill_blocks / blocks
    compute = flops_per_pair * pairs / (constants.compute_fraction * peak) * ramp * fill
    moving = b * (
        constants.us_per_sequence_head * h
        + constants.us_per_token_head * new * (h + 2 * kv) * (head_dim / _HEAD_DIM)
    )
    limit = flops_per_pair * pairs / peak
    return np.asarray(np.maximum(constants.launch_us + compute + moving, limit))


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
    streams = b * (kv_heads * head_dim / _HEAD_DIM)
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
    kv_bytes = 2 * _HEAD_DIM * BYTES_PER_VALUE[dtype] * streams * length
    return np.asarray(np.maximum(latency_us, kv_bytes / (sheet.hbm_bytes_per_second / _US)))


def decode_guess_us(
    streams: _Array, context: _Array, *, entry: DecodeGroup, dtype: str, sheet: Sheet
) -> Microseconds:
    """The first guess of `DecodeGroup`, before its table; kernels read whole KV blocks."""
    padded = np.maximum(context, _KV_BLOCK_TOKENS)
    kv_bytes = 2 * _HEAD_DIM * BYTES_PER_VALUE[dtype] * streams * padded
    bandwidth = entry.memory_fraction * sheet.hbm_bytes_per_second / _US
    return np.asarray(entry.floor_us + entry.us_per_stream * streams + kv_bytes / bandwidth)


def table_cells(
    work_log2: _Array, context_log2: _Array, streams: _Array, context: _Array
) -> tuple[_Array, NDArray[np.intp]]:
    """Bilinear weights and flat indices of the four table entries around each point.

    Both have a leading axis of four; points outside the table take its edge.
    """
    span = np.log2(context)
    work = np.log2(streams) + np.maximum(span, context_log2[0])
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
    """Microseconds of one all-reduce among ``tp`` GPUs, ``message_bytes`` on each."""
    size = np.asarray(message_bytes, np.float64)
    mib = size / _MIB
    one_shot = lines.one_shot_us + lines.one_shot_us_per_mib * mib
    two_shot = lines.two_shot_us + lines.two_shot_us_per_mib * mib
    # A GPU must at least send and receive its (tp - 1) / tp of the message.
    limit = size * (tp - 1) / tp / (sheet.link_bytes_per_second / _US)
    return np.maximum(np.minimum(one_shot, two_shot), limit)


class AnalyticLatency:
    """Predicts latencies of a parent's subblock variants from a cost model.

    Weights, activations and KV cache are of ``dtype``; norms, embedding and output head stay bf16.
    Projections are column-parallel then row-parallel over the TP group, with one all-reduce per
    subblock; KV heads fewer than the TP degree are replicated.

    Args:
        config: the parent.
        model: constants of the GPU.
        engine: serving engine whose constants to use.
        dtype: ``bf16`` or ``fp8``.
        dynamic_quantisation: charge each fp8 GEMM the quantisation of its activations, which
            engines with static scales do not pay.

    Raises:
        InputError: the engine or the dtype is not known.
    """

    def __init__(
        self,
        config: ParentConfig,
        model: CostModel,
        engine: str,
        dtype: str,
        *,
        dynamic_quantisation: bool = False,
    ) -> None:
        if dtype not in DTYPES:
            raise InputError(f"dtype {dtype!r} is not known", remedy=f"use {' or '.join(DTYPES)}")
        self.config = config
        self.sheet = model.sheet
        self.constants = model.engine(engine)
        self.dtype = dtype
        self.dynamic_quantisation = dynamic_quantisation
        # Everything predicted went through the end-to-end calibration of the step constants.
        self.evidence: Evidence = self.constants.step.provenance.evidence

    def subblock_us(
        self,
        subblock: Subblock,
        variant: str,
        phase: Phase,
        *,
        batch: ArrayLike,
        tokens: ArrayLike,
        context: ArrayLike,
        tp: int,
    ) -> Microseconds:
        """Microseconds of one subblock with its norm, residual and all-reduce; see `LatencyModel`.

        Raises:
            InputError: the variant or the TP degree is not known.
        """
        parsed = parse_variant(subblock, variant)
        b, new, length = (np.asarray(x, np.float64) for x in (batch, tokens, context))
        shape = np.broadcast_shapes(b.shape, new.shape, length.shape)
        if isinstance(parsed, NoOp):
            return np.zeros(shape)
        config, rows = self.config, b * new
        hidden, head_dim = config.hidden_size, config.head_dim
        latency_us: Microseconds = self._norm(rows) + self._all_reduce(rows, tp)
        if isinstance(parsed, Gqa):
            heads = -(-config.num_heads // tp)
            kv_heads = -(-parsed.kv_heads // tp)
            latency_us = latency_us + self._gemm(rows, (heads + 2 * kv_heads) * head_dim, hidden)
            latency_us = latency_us + self._gemm(rows, hidden, heads * head_dim)
            latency_us = latency_us + self._attention(phase, b, new, length, heads, kv_heads)
        elif isinstance(parsed, Mlp):
            width = -(-parsed.intermediate_size // tp)
            latency_us = latency_us + self._gemm(rows, 2 * width, hidden)
            latency_us = latency_us + self._gated_activation(rows, width)
            latency_us = latency_us + self._gemm(rows, hidden, width)
        else:
            latency_us = latency_us + self._gemm(rows, hidden, -(-hidden // tp))
        return np.broadcast_to(latency_us * self.constants.step.engine_scalar, shape)

    def outside_us(
        self, phase: Phase, *, batch: ArrayLike, tokens: ArrayLike, tp: int
    ) -> Microseconds:
        """Microseconds of embedding, final norm, output head, sampling and engine step.

        The head runs for one token per sequence, in prefill the last.

        Raises:
            InputError: the TP degree is not known.
        """
        b, new = np.broadcast_arrays(np.asarray(batch, np.float64), np.asarray(tokens, np.float64))
        config, step = self.config, self.constants.step
        vocabulary = -(-config.vocab_size // tp)
        embedding = self._elementwise(4 * b * new * config.hidden_size)
        head = self._gemm(b, vocabulary, config.hidden_size, dtype="bf16")
        # Logits are read twice: for the largest, then for the sum of exponentials.
        sampling = self._elementwise(2 * 2 * b * config.vocab_size)
        kernels = embedding + self._norm(b) + head + sampling + self._all_reduce(b * new, tp)
        overhead = step.step_us + step.step_us_per_sequence * b
        overhead = overhead + step.step_us_per_tp_doubling * np.log2(tp)
        return np.asarray(kernels * step.engine_scalar + overhead)

    def _gemm(
        self, rows: _Array, columns: int, inner: int, *, dtype: str | None = None
    ) -> Microseconds:
        chosen = dtype or self.dtype
        return gemm_us(
            rows,
            columns,
            inner,
            dtype=chosen,
            sheet=self.sheet,
            constants=self.constants.gemm[chosen],
            max_rows=self.constants.step.max_tokens,
            quantise=self.dynamic_quantisation,
        )

    def _attention(
        self,
        phase: Phase,
        batch: _Array,
        tokens: _Array,
        context: _Array,
        heads: int,
        kv_heads: int,
    ) -> Microseconds:
        if phase == "prefill":
            return prefill_attention_us(
                batch,
                tokens,
                context,
                heads=heads,
                kv_heads=kv_heads,
                head_dim=self.config.head_dim,
                dtype=self.dtype,
                sheet=self.sheet,
                constants=self.constants.prefill_attention[self.dtype],
            )
        return decode_attention_us(
            batch,
            context,
            heads=heads,
            kv_heads=kv_heads,
            head_dim=self.config.head_dim,
            dtype=self.dtype,
            sheet=self.sheet,
            constants=self.constants.decode_attention[self.dtype],
        )

    def _elementwise(self, moved_bytes: _Array) -> Microseconds:
        return elementwise_us(moved_bytes, sheet=self.sheet, constants=self.constants.elementwise)

    def _norm(self, rows: _Array) -> Microseconds:
        """Residual add and RMSNorm in one kernel: two bf16 reads, two writes."""
        return self._elementwise(rows * self.config.hidden_size * (6 + BYTES_PER_VALUE[self.dtype]))

    def _gated_activation(self, rows: _Array, width: int) -> Microseconds:
        """SiLU(gate) x up: two bf16 reads, one write in the dtype of the next GEMM."""
        return self._elementwise(rows * width * (4 + BYTES_PER_VALUE[self.dtype]))

    def _all_reduce(self, rows: _Array, tp: int) -> Microseconds:
        if tp == 1:
            return np.zeros(())
        by_tp = self.constants.all_reduce.by_tp
        if tp not in by_tp:
            raise InputError(
                f"tensor-parallel degree {tp} is not in the cost model",
                remedy=f"use one of 1, {', '.join(map(str, by_tp))}",
            )
        message_bytes = 2 * rows * self.config.hidden_size
        return all_reduce_us(message_bytes, tp=tp, sheet=self.sheet, lines=by_tp[tp])
