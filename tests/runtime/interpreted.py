"""Decode attention in Triton's interpreter, which a process has or has not from its first import.

    TRITON_INTERPRET=1 python -m tests.runtime.interpreted < cases.json

Reads a list of cases, prints the largest difference of each to the float64 reference.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import torch
import triton.language as tl

from puzzle_search.runtime.attention import triton_decode
from tests.runtime.reference import decode

# The interpreter multiplies the bit patterns of bf16. Loads and stores stay in bf16.
triton_decode._DOT_DTYPES[torch.bfloat16] = tl.float32


def difference(case: dict[str, Any]) -> float:
    """Of one case, with no numbers beyond each length and slots that do not lie side by side."""
    torch.manual_seed(case["seed"])
    dtype, kv_dtype = getattr(torch, case["dtype"]), getattr(torch, case["kv_dtype"])
    lengths, kv_heads, head_dim = case["lengths"], case["kv_heads"], case["head_dim"]
    batch = len(lengths)
    q = torch.randn(batch, kv_heads * case["group"], head_dim).to(dtype)
    cache = torch.randn(2 * batch, case["max_length"], 2, kv_heads, head_dim).to(kv_dtype)
    keys, values = cache[::2, :, 0], cache[::2, :, 1]
    for slot, length in enumerate(lengths):
        for tensor in (keys, values):
            tensor[slot, length:] = torch.nan
    out = triton_decode.decode_attention(
        q, keys, values, torch.tensor(lengths, dtype=torch.int32), splits=case["splits"]
    )
    assert out.dtype == dtype
    assert out.shape == q.shape
    return float((out - decode(q, keys, values, lengths)).abs().max())


if __name__ == "__main__":
    print(json.dumps([difference(case) for case in json.load(sys.stdin)]))
