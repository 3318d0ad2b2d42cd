"""Types in which GGUF stores weights."""

from __future__ import annotations

import math

from puzzle_search.arch.variants import Shape

TYPES = {
    "f32": 0,
    "f16": 1,
    "bf16": 32,
    "q8_0": 7,
    "q5_1": 9,
    "q5_0": 8,
    "q4_1": 3,
    "q4_0": 2,
    "q4_k": 14,
}
"""Name to llama.cpp's number of a file of that type (``general.file_type``)."""

_BLOCK = 32
_LARGE_BLOCK = 256  # of q4_k
_BYTES_OF_BLOCK = {
    "f32": 128, "f16": 64, "bf16": 64, "q8_0": 34, "q5_1": 24, "q5_0": 22, "q4_1": 20, "q4_0": 18,
    "q4_k": 18,
}  # fmt: skip
_QUANTISED = ("q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "q4_k")


def stored_type(shape: Shape, dtype: str, *, table: bool) -> str:
    """The type of one tensor in a file of this type.

    Vectors stay f32, as llama.cpp wants them. Rows that no block of 32 divides stay f16, those
    that none of 256 divides are q5_0 for q4_k, as llama.cpp has them. Embedding and output head
    get 8 bits at least: they lose most by less.
    """
    if len(shape) == 1:
        return "f32"
    if dtype not in _QUANTISED:
        return dtype
    if shape[-1] % _BLOCK:
        return "f16"
    if table:
        return "q8_0"
    return "q5_0" if dtype == "q4_k" and shape[-1] % _LARGE_BLOCK else dtype


def stored_bytes(shape: Shape, dtype: str) -> int:
    """Bytes of a tensor of this type."""
    return math.prod(shape) * _BYTES_OF_BLOCK[dtype] // _BLOCK
