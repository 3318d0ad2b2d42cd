"""Experts stored as MXFP4: 32 numbers of 4 bits share a power of two (OCP microscaling formats).

A tensor of (experts, in, out) is stored as ``<name>_blocks``, (experts, out, in / 32, 16) bytes of
two numbers each, the lower half first, and ``<name>_scales``, (experts, out, in / 32) biased
exponents.
"""

from __future__ import annotations

import torch

from puzzle_search.arch.variants import Shape

BLOCKS, SCALES = "_blocks", "_scales"
STORED_DTYPE = "U8"
_MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_BIAS = 127
_SHARING = 32


def packed_shapes(shape: Shape) -> dict[str, Shape]:
    """Shapes of the two stored tensors of one of (experts, in, out), by suffix of its name."""
    experts, inner, outer = shape
    scales = (experts, outer, inner // _SHARING)
    return {BLOCKS: (*scales, _SHARING // 2), SCALES: scales}


def unpacked(blocks: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """The numbers of all experts in bf16, which holds them exactly: (experts, in, out), a view."""
    values = torch.tensor(_MAGNITUDES + tuple(-value for value in _MAGNITUDES))
    experts, outer, groups, _ = blocks.shape
    numbers = torch.empty(experts, outer, groups * _SHARING, dtype=torch.bfloat16)
    for expert in range(experts):  # one at a time: indices take more memory than numbers
        block = blocks[expert].int()
        halves = torch.stack([block & 15, block >> 4], dim=-1).flatten(-2)
        powers = torch.exp2(scales[expert].float() - _BIAS)[..., None]
        numbers[expert] = (values[halves] * powers).flatten(-2)
    return numbers.transpose(1, 2)
