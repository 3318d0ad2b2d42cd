"""Types in which GGUF stores weights."""

from __future__ import annotations

import math

from puzzle_search.arch.variants import Shape
from puzzle_search.arch.weight_types import GGUF_BYTES, gguf_type

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

_LARGE_BLOCK = 256  # of q4_k, which llama.cpp alone writes
_BYTES = GGUF_BYTES | {"q4_k": 18 / 32}


def stored_type(shape: Shape, dtype: str, *, table: bool) -> str:
    """The type of one tensor in a file of this type.

    Vectors stay f32, as llama.cpp wants them. Rows that no block of 32 divides stay f16, those
    that none of 256 divides are q5_0 for q4_k, as llama.cpp has them. Embedding and output head
    get 8 bits at least: they lose most by less.
    """
    if len(shape) == 1:
        return "f32"
    if dtype == "q4_k" and shape[-1] % _LARGE_BLOCK:
        dtype = "q5_0"
    if table and _BYTES[dtype] < _BYTES["q8_0"]:
        dtype = "q8_0"
    return gguf_type(shape, dtype)


def stored_bytes(shape: Shape, dtype: str) -> int:
    """Bytes of a tensor of this type."""
    return int(math.prod(shape) * _BYTES[dtype])
