"""What is compiled on a GPU traces whole and computes what plain torch does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from puzzle_search.model.rope import RotarySlice
from puzzle_search.runtime import fuse


def arguments(name: str, rows: int) -> tuple[Any, ...]:
    torch.manual_seed(rows)
    scale, eps = torch.tensor(0.02), 1e-5
    if name == "quantise":
        return torch.randn(rows, 64), scale
    if name == "add_norm":
        return torch.randn(rows, 64), torch.randn(rows, 64), torch.randn(64), eps, scale, 0.5
    if name == "silu_multiply":
        return torch.randn(rows, 96), scale
    heads, kv_heads, head_dim = 4, 2, 16
    return (
        torch.randn(rows, (heads + 2 * kv_heads) * head_dim),
        RotarySlice(torch.randn(rows, 1, head_dim), torch.randn(rows, 1, head_dim)),
        (torch.randn(head_dim), torch.randn(kv_heads, head_dim), eps),
        0.5,
        torch.zeros(rows, 8, kv_heads, head_dim).to(torch.float8_e4m3fn),
        torch.zeros(rows, 8, kv_heads, head_dim).to(torch.float8_e4m3fn),
        torch.arange(rows),
        torch.full((rows,), 3),
        None,
    )


@pytest.mark.parametrize("name", ["quantise", "add_norm", "silu_multiply", "rotate_and_store"])
def test_it_compiles_whole_for_any_number_of_rows(name: str) -> None:
    plain: Callable[..., Any] = getattr(fuse, name).__wrapped__
    torch._dynamo.reset()
    # Without code generation: what a GPU adds to this is the kernels alone.
    compiled = torch.compile(plain, fullgraph=True, backend="aot_eager")
    with torch.inference_mode():
        for rows in (7, 12, 1, 33):
            expected, found = arguments(name, rows), arguments(name, rows)
            torch.testing.assert_close(compiled(*found), plain(*expected), rtol=0, atol=0)
            torch.testing.assert_close(found, expected, rtol=0, atol=0)  # caches written alike


def test_numbers_beyond_fp8_saturate() -> None:
    out = fuse.quantise(torch.tensor([[1e6, -1e6, 1.0]]), torch.tensor(1.0)).float()
    assert out.tolist() == [[448.0, -448.0, 1.0]]


def test_keys_and_values_beyond_fp8_saturate_in_the_cache() -> None:
    qkv_NX, rotary, _, _, keys, values, slots, positions, _ = arguments("rotate_and_store", 2)
    still = RotarySlice(torch.ones_like(rotary.cos_LE), torch.zeros_like(rotary.sin_LE))
    qkv_NX.fill_(1e4)
    fuse.rotate_and_store(qkv_NX, still, None, 1.0, keys, values, slots, positions, None)
    for cached in (keys, values):
        assert cached[0, 3].float().unique().tolist() == [448.0]
