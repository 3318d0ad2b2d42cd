"""Decode attention on CUDA that reads lengths on the device, splits the context and takes fp8.

torch has none: its varlen attention takes 16-bit keys only, and a cache with lengths only through
FlashAttention 3, installed apart (pytorch/pytorch#173212). Flex attention needs keys of the dtype
of queries, and a block mask built anew as the lengths grow.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from puzzle_search.runtime.attention.triton_kernels import attend, join

_MAX_SPLITS = 128  # shares that `join` takes at once
_RESIDENT = 3  # programs that an SM of a Hopper GPU holds
_OVERHEAD_BLOCKS = 2  # what a program costs besides its blocks, and what joining costs, in blocks

_DOT_DTYPES = {
    torch.float32: tl.float32,
    torch.bfloat16: tl.bfloat16,
    torch.float16: tl.float16,
}


class TritonDecode:
    """Decode attention whose captured graph is right for any lengths."""

    def prepare(self, lengths: Sequence[int]) -> None:
        """Nothing: lengths are read on the device."""

    def __call__(
        self,
        q_BHE: torch.Tensor,
        keys_BSKE: torch.Tensor,
        values_BSKE: torch.Tensor,
        lengths_B: torch.Tensor,
    ) -> torch.Tensor:
        """See `DecodeAttention`."""
        return decode_attention(q_BHE, keys_BSKE, values_BSKE, lengths_B)


def decode_attention(
    q_BHE: torch.Tensor,
    keys_BSKE: torch.Tensor,
    values_BSKE: torch.Tensor,
    lengths_B: torch.Tensor,
    *,
    splits: int | None = None,
) -> torch.Tensor:
    """Attend from one token of each sequence to the first ``lengths_B`` positions of its slot.

    fp8 keys and values are multiplied in fp16, which holds them exactly, unless queries are fp32.

    Args:
        q_BHE: queries in fp32, bf16 or fp16, dense in E; H = K * group size.
        keys_BSKE: in the dtype of queries or e4m3, dense in E, any strides else.
        values_BSKE: as keys.
        lengths_B: int32, between 1 and S.
        splits: parts of a context that are attended to side by side; chosen from B, K, S and the
            device where None, never from lengths.

    Returns:
        What the heads attended to, (B, H, E), in the dtype of ``q_BHE``.

    Source: Flash-Decoding, Dao et al. 2023.
    """
    batch, heads, head_dim = q_BHE.shape
    kv_heads = keys_BSKE.shape[2]
    assert lengths_B.dtype == torch.int32
    assert q_BHE.stride(-1) == keys_BSKE.stride(-1) == values_BSKE.stride(-1) == 1
    dot_dtype = q_BHE.dtype
    pairs = keys_BSKE.dtype == torch.float8_e4m3fn
    columns = max(triton.next_power_of_2(head_dim), 32 if pairs else 16)
    rows = max(triton.next_power_of_2(heads // kv_heads), 16)
    block, stages = _tile(columns * keys_BSKE.element_size())
    if pairs:
        keys_BSKE, values_BSKE = keys_BSKE.view(torch.int16), values_BSKE.view(torch.int16)
        if dot_dtype == torch.bfloat16:
            dot_dtype = torch.float16
    if splits is None:
        splits = choose_splits(
            batch * kv_heads, triton.cdiv(keys_BSKE.shape[1], block), _multiprocessors(q_BHE.device)
        )
    out = q_BHE.new_empty(q_BHE.shape)
    parts, log_sums = out, out
    if splits > 1:
        parts = out.new_empty((batch, heads, splits, head_dim), dtype=torch.float32)
        log_sums = out.new_empty((batch, heads, splits), dtype=torch.float32)
    attend[(kv_heads, splits, batch)](
        q_BHE,
        keys_BSKE,
        values_BSKE,
        lengths_B,
        parts,
        log_sums,
        math.log2(math.e) / math.sqrt(head_dim),
        splits,
        *q_BHE.stride()[:2],
        *keys_BSKE.stride()[:3],
        *values_BSKE.stride()[:3],
        GROUP=heads // kv_heads,
        GROUP_ROWS=rows,
        HEAD_DIM=head_dim,
        HEAD_COLUMNS=columns,
        BLOCK=block,
        PAIRS=pairs,
        SPLIT=splits > 1,
        DOT_DTYPE=_DOT_DTYPES[dot_dtype],
        num_warps=4 if rows <= 64 else 8,
        num_stages=stages,
    )
    if splits > 1:
        join[(batch * heads,)](
            parts,
            log_sums,
            out,
            splits,
            HEAD_DIM=head_dim,
            HEAD_COLUMNS=columns,
            MAX_SPLITS=_MAX_SPLITS,
            num_warps=8,
        )
    return out


@functools.cache
def choose_splits(programs: int, blocks: int, multiprocessors: int) -> int:
    """Parts of a context for which the waves of programs over the device are shortest.

    Args:
        programs: KV heads times sequences.
        blocks: in the longest context that a slot holds.
        multiprocessors: of the device.
    """

    def cost_blocks(splits: int) -> int:
        waves = math.ceil(programs * splits / (multiprocessors * _RESIDENT))
        joining = _OVERHEAD_BLOCKS if splits > 1 else 0
        return waves * (math.ceil(blocks / splits) + _OVERHEAD_BLOCKS) + joining

    return min(range(1, min(blocks, _MAX_SPLITS) + 1), key=cost_blocks)


def _tile(row_bytes: int) -> tuple[int, int]:
    """Positions of a block, and blocks on their way from memory and in use.

    Chosen so that on an SM of Hopper three programs or more fit, each with 32 to 64 KB of keys and
    values in shared memory: memory stays busy while one waits for its softmax.
    """
    positions = min(max(16384 // row_bytes, 16), 64)
    return positions, 4 if positions * row_bytes <= 8192 else 3


@functools.cache
def _multiprocessors(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).multi_processor_count
    return 1
