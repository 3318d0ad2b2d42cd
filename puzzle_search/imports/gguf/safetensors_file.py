"""A safetensors file written piece by piece, so that no tensor need be in memory as a whole.

The library's own writers take whole tensors at once, and its numpy side knows no bfloat16. The
format: the header's length (8 bytes), the header (JSON), the tensors without gaps.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal

from puzzle_search.imports.gguf.source import Array, Shape

StoredDtype = Literal["bf16", "fp16", "fp32"]

# The format's name, torch's name, bytes.
_DTYPES: dict[StoredDtype, tuple[str, str, int]] = {
    "bf16": ("BF16", "bfloat16", 2),
    "fp16": ("F16", "float16", 2),
    "fp32": ("F32", "float32", 4),
}
_ALIGNMENT = 8


def torch_name(dtype: StoredDtype) -> str:
    """What torch calls a dtype."""
    return _DTYPES[dtype][1]


def write_safetensors(
    file: Path,
    shapes: Mapping[str, Shape],
    pieces: Iterable[Array],
    *,
    dtype: StoredDtype,
    metadata: Mapping[str, str],
) -> int:
    """Write tensors of one dtype.

    Args:
        file: the file.
        shapes: every tensor's shape by name, in the order in which they are stored.
        pieces: their values, in that order, cut anywhere.
        dtype: what the values are stored in.
        metadata: texts for the header.

    Returns:
        The bytes of all tensors.
    """
    kind, _, size = _DTYPES[dtype]
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + math.prod(shape) * size
        header[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    with file.open("wb") as out:
        out.write(struct.pack("<Q", len(text)) + text)
        written = sum(out.write(piece.tobytes()) for piece in pieces)
    assert written == end
    return written
