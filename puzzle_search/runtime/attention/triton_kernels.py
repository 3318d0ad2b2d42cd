"""Flash-decoding (Dao et al. 2023) in Triton: one kernel attends to shares of a context, one joins.

Scores are in base 2, so that exponentials are single instructions. Nothing but head shapes, dtypes
and whether the context is split is a constant of a compiled kernel.

fp8 keys and values are read as pairs of bytes. Shared memory moves 16-bit elements into the layout
of the matrix instructions, transposed where needed, and single bytes only one by one; so a pair
stays whole until it is in registers, and even and odd columns are multiplied apart.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def even_columns(pairs, DTYPE: tl.constexpr):
    """The lower byte of each pair of e4m3 numbers."""
    return pairs.to(tl.int8).to(tl.float8e4nv, bitcast=True).to(DTYPE)


@triton.jit
def odd_columns(pairs, DTYPE: tl.constexpr):
    """The upper byte of each pair of e4m3 numbers."""
    return (pairs >> 8).to(tl.int8).to(tl.float8e4nv, bitcast=True).to(DTYPE)


@triton.jit(do_not_specialize=["splits"])
def attend(
    q_ptr,
    keys_ptr,
    values_ptr,
    lengths_ptr,
    out_ptr,
    log_sums_ptr,
    scale_log2,
    splits,
    q_stride_b,
    q_stride_h,
    keys_stride_b,
    keys_stride_s,
    keys_stride_k,
    values_stride_b,
    values_stride_s,
    values_stride_k,
    GROUP: tl.constexpr,
    GROUP_ROWS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    HEAD_COLUMNS: tl.constexpr,
    BLOCK: tl.constexpr,
    PAIRS: tl.constexpr,
    SPLIT: tl.constexpr,
    DOT_DTYPE: tl.constexpr,
):
    """Attend from the query heads of one KV head of one sequence to one share of its context.

    Grid: (K, splits, B); KV heads are the fastest, since their rows lie side by side in memory.
    Where SPLIT, ``out`` is (B, H, splits, E) in fp32, and ``log_sums`` (B, H, splits) takes the
    base-2 logarithms of the sums of exponentials, minus infinity for an empty share; else ``out``
    is (B, H, E). Where PAIRS, keys and values are int16 with half as many columns, and their
    strides count those.
    """
    kv_head = tl.program_id(0)
    split = tl.program_id(1)
    sequence = tl.program_id(2).to(tl.int64)
    kv_heads = tl.num_programs(0)

    length = tl.load(lengths_ptr + sequence)
    blocks = tl.cdiv(length, BLOCK)
    # Shares differ by one block at most.
    start = split * blocks // splits * BLOCK
    end = tl.minimum((split + 1) * blocks // splits * BLOCK, length)

    rows = tl.arange(0, GROUP_ROWS)
    columns = tl.arange(0, HEAD_COLUMNS)
    positions = tl.arange(0, BLOCK)
    in_group = rows < GROUP
    heads = kv_head * GROUP + rows
    CACHED_COLUMNS: tl.constexpr = HEAD_COLUMNS // 2 if PAIRS else HEAD_COLUMNS
    CACHED_DIM: tl.constexpr = HEAD_DIM // 2 if PAIRS else HEAD_DIM
    cached_columns = tl.arange(0, CACHED_COLUMNS)
    in_cached = cached_columns < CACHED_DIM

    q_rows = q_ptr + sequence * q_stride_b + heads[:, None] * q_stride_h
    q_mask = in_group[:, None] & in_cached[None, :]
    mixed = tl.zeros([GROUP_ROWS, CACHED_COLUMNS], tl.float32)
    if PAIRS:
        q_pairs = q_rows + 2 * cached_columns[None, :]
        q = tl.load(q_pairs, mask=q_mask, other=0.0).to(DOT_DTYPE)
        q_odd = tl.load(q_pairs + 1, mask=q_mask, other=0.0).to(DOT_DTYPE)
        mixed_odd = tl.zeros([GROUP_ROWS, CACHED_COLUMNS], tl.float32)
    else:
        q = tl.load(q_rows + cached_columns[None, :], mask=q_mask, other=0.0).to(DOT_DTYPE)

    # A share begins at a 64-bit address; inside a block 32 bits are enough.
    first = start.to(tl.int64)
    key_row = keys_ptr + sequence * keys_stride_b + first * keys_stride_s
    key_row += kv_head * keys_stride_k
    value_row = values_ptr + sequence * values_stride_b + first * values_stride_s
    value_row += kv_head * values_stride_k
    key_offsets = positions[None, :] * keys_stride_s + cached_columns[:, None]
    value_offsets = positions[:, None] * values_stride_s + cached_columns[None, :]

    highest = tl.full([GROUP_ROWS], float("-inf"), tl.float32)
    total = tl.zeros([GROUP_ROWS], tl.float32)
    for block_start in tl.range(start, end, BLOCK):
        valid = positions < end - block_start
        key_mask = valid[None, :]
        value_mask = valid[:, None]
        if CACHED_COLUMNS != CACHED_DIM:
            key_mask = key_mask & in_cached[:, None]
            value_mask = value_mask & in_cached[None, :]
        # What lies beyond the sequence may be no number: it is not read.
        keys = tl.load(key_row + key_offsets, mask=key_mask, other=0)
        if PAIRS:
            scores = tl.dot(q, even_columns(keys, DOT_DTYPE), input_precision="ieee")
            scores = tl.dot(q_odd, odd_columns(keys, DOT_DTYPE), scores, input_precision="ieee")
        else:
            scores = tl.dot(q, keys.to(DOT_DTYPE), input_precision="ieee")
        scores = tl.where(valid[None, :], scores * scale_log2, float("-inf"))
        # Every block has a valid position, hence a finite maximum.
        new_highest = tl.maximum(highest, tl.max(scores, 1))
        weights = tl.exp2(scores - new_highest[:, None])
        shrink = tl.exp2(highest - new_highest)
        highest = new_highest
        total = total * shrink + tl.sum(weights, 1)
        weights = weights.to(DOT_DTYPE)
        values = tl.load(value_row + value_offsets, mask=value_mask, other=0)
        mixed *= shrink[:, None]
        if PAIRS:
            mixed = tl.dot(weights, even_columns(values, DOT_DTYPE), mixed, input_precision="ieee")
            mixed_odd *= shrink[:, None]
            mixed_odd = tl.dot(
                weights, odd_columns(values, DOT_DTYPE), mixed_odd, input_precision="ieee"
            )
        else:
            mixed = tl.dot(weights, values.to(DOT_DTYPE), mixed, input_precision="ieee")
        key_row += BLOCK * keys_stride_s
        value_row += BLOCK * values_stride_s

    out_rows = sequence * kv_heads * GROUP + heads
    if SPLIT:
        out_rows = out_rows * splits + split
        tl.store(log_sums_ptr + out_rows, highest + tl.log2(total), mask=in_group)
    attended = tl.interleave(mixed, mixed_odd) if PAIRS else mixed
    if end > start:
        tl.store(
            out_ptr + out_rows[:, None] * HEAD_DIM + columns[None, :],
            (attended / total[:, None]).to(out_ptr.dtype.element_ty),
            mask=in_group[:, None] & (columns < HEAD_DIM)[None, :],
        )


@triton.jit(do_not_specialize=["splits"])
def join(
    parts_ptr,
    log_sums_ptr,
    out_ptr,
    splits,
    HEAD_DIM: tl.constexpr,
    HEAD_COLUMNS: tl.constexpr,
    MAX_SPLITS: tl.constexpr,
):
    """Weigh the shares of one query head by their sums; grid: (B * H,)."""
    row = tl.program_id(0).to(tl.int64)
    shares = tl.arange(0, MAX_SPLITS)
    columns = tl.arange(0, HEAD_COLUMNS)
    log_sums = tl.load(
        log_sums_ptr + row * splits + shares, mask=shares < splits, other=float("-inf")
    )
    weights = tl.exp2(log_sums - tl.max(log_sums, 0))
    # Nothing was written for an empty share: what is there may be no number.
    filled = log_sums > float("-inf")
    parts = tl.load(
        parts_ptr + (row * splits + shares)[:, None] * HEAD_DIM + columns[None, :],
        mask=filled[:, None] & (columns < HEAD_DIM)[None, :],
        other=0.0,
    )
    mixed = tl.sum(parts * weights[:, None], 0) / tl.sum(weights, 0)
    tl.store(
        out_ptr + row * HEAD_DIM + columns,
        mixed.to(out_ptr.dtype.element_ty),
        mask=columns < HEAD_DIM,
    )
