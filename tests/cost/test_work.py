"""Least work of operators against arithmetic written out."""

from __future__ import annotations

import pytest

from puzzle_search.arch import ParentConfig, parse_variant
from puzzle_search.cost.measured.work import head_work, least_us, subblock_floor, subblock_work
from puzzle_search.cost.memory import parse_dtype
from tests.arch.configs import CONFIGS

LLAMA = ParentConfig.from_dict(CONFIGS["Llama-3.1-70B"], name="llama-3.1-70b")
FP8 = parse_dtype("fp8")


def work(subblock: str, name: str, **at: int) -> dict[str, tuple[float, float]]:
    variant = parse_variant(subblock, name)  # type: ignore[arg-type]
    found = subblock_work(variant, LLAMA, FP8, **at)
    return {one.name: (one.flops, one.moved_bytes) for one in found}


def test_a_decode_step_of_attention() -> None:
    assert work("attention", "gqa_8", batch=16, tokens=1, context=1000, tp=1) == {
        "qkv": (2 * 16 * 8192 * 10240, 8192 * 10240),
        "attention": (4 * 16 * 64 * 128 * 1000, 16 * 1000 * 2 * 8 * 128),
        "o": (2 * 16 * 8192 * 8192, 8192 * 8192),
    }


def test_a_prompt_sees_itself_causally() -> None:
    flops, _ = work("attention", "gqa_8", batch=2, tokens=100, context=100, tp=1)["attention"]
    pairs = 100 * 101 / 2  # of a query and a key that it may see
    assert flops == 2 * 4 * 64 * 128 * pairs
    flops, _ = work("attention", "gqa_8", batch=1, tokens=100, context=300, tp=1)["attention"]
    assert flops == 4 * 64 * 128 * (pairs + 100 * 200)


def test_shards_share_heads_and_replicate_few_kv_heads() -> None:
    found = work("attention", "gqa_2", batch=1, tokens=1, context=10, tp=4)
    assert found["qkv"][1] == (16 + 2) * 128 * 8192
    assert found["attention"][1] == 10 * 2 * 1 * 128
    assert found["o"][1] == 8192 * 2048
    assert work("ffn", "mlp_28672", batch=1, tokens=1, context=1, tp=4) == {
        "gate_up": (2 * 2 * 7168 * 8192, 2 * 7168 * 8192),
        "down": (2 * 7168 * 8192, 7168 * 8192),
    }


def test_linear_no_op_and_head() -> None:
    assert work("ffn", "linear", batch=3, tokens=2, context=2, tp=2) == {
        "linear": (2 * 6 * 8192 * 4096, 8192 * 4096)
    }
    assert work("attention", "no_op", batch=3, tokens=2, context=2, tp=2) == {}
    head = head_work(LLAMA, FP8, batch=5, tp=1)
    assert head.dtype == "bf16"
    assert (head.flops, head.moved_bytes) == (2 * 5 * 128256 * 8192, 128256 * 8192 * 2)


def test_the_floor_of_a_step_adds_each_operators_own_limit() -> None:
    ffn = parse_variant("ffn", "mlp_28672")
    at = {"batch": 1, "tokens": 1, "context": 1, "tp": 1}
    flops, moved_bytes = subblock_floor(ffn, LLAMA, FP8, **at)
    assert (flops, moved_bytes) == (2 * 3 * 8192 * 28672, 3 * 8192 * 28672)
    # Memory-bound: 704.6 MB at 4.8 TB/s.
    few = subblock_work(ffn, LLAMA, FP8, **at)
    assert least_us(few, {"fp8": 2e15}, 4.8e12) == pytest.approx(3 * 8192 * 28672 / 4.8e6)
    # Compute-bound: 4096 rows.
    many = subblock_work(ffn, LLAMA, FP8, **at | {"batch": 4096})
    assert least_us(many, {"fp8": 2e15}, 4.8e12) == pytest.approx(4096 * flops / 2e9)
    # One of each: the sum of the larger of both, not the larger of the sums.
    head = head_work(LLAMA, FP8, batch=1, tp=1)
    mixed = least_us([*many, head], {"fp8": 2e15, "bf16": 1e15}, 4.8e12)
    assert mixed == pytest.approx(4096 * flops / 2e9 + 128256 * 8192 * 2 / 4.8e6)
