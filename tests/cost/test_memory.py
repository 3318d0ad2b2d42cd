"""Memory against closed forms and published numbers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from puzzle_search.arch import ParentConfig, parse_variant
from puzzle_search.cost.memory import (
    activation_bytes,
    kv_bytes_per_token,
    outside_bytes,
    parse_dtype,
    weight_bytes,
)
from puzzle_search.errors import InputError
from tests.arch.configs import CONFIGS

LLAMA = ParentConfig.from_dict(CONFIGS["Llama-3.1-70B"], name="llama-3.1-70b")
SIZES = {"fp8": (1, 2, 1), "bf16": (2, 2, 2), "fp32": (4, 4, 4)}


@pytest.mark.parametrize("tp", [1, 2, 4, 8])
@pytest.mark.parametrize("dtype", SIZES)
@pytest.mark.parametrize("kv_heads", [8, 4, 2, 1])
def test_attention_weights_and_cache(kv_heads: int, dtype: str, tp: int) -> None:
    matrix, vector, cached = SIZES[dtype]
    local = max(1, kv_heads // tp)  # fewer heads than devices are replicated
    expected = matrix * (2 * 8192 * 8192 // tp + 2 * 8192 * 128 * local) + vector * 8192
    variant = parse_variant("attention", f"gqa_{kv_heads}")
    assert weight_bytes(variant, LLAMA, parse_dtype(dtype), tp) == expected
    assert kv_bytes_per_token(variant, LLAMA, parse_dtype(dtype), tp) == 2 * 128 * local * cached


@pytest.mark.parametrize("tp", [1, 2, 4, 8])
@pytest.mark.parametrize("dtype", SIZES)
@pytest.mark.parametrize("width", [28672, 14336, 2816])
def test_ffn_weights(width: int, dtype: str, tp: int) -> None:
    matrix, vector, _ = SIZES[dtype]
    variant = parse_variant("ffn", f"mlp_{width}")
    expected = matrix * 3 * 8192 * width // tp + vector * 8192
    assert weight_bytes(variant, LLAMA, parse_dtype(dtype), tp) == expected
    assert kv_bytes_per_token(variant, LLAMA, parse_dtype(dtype), tp) == 0


@pytest.mark.parametrize("tp", [1, 2, 4, 8])
@pytest.mark.parametrize("dtype", SIZES)
@pytest.mark.parametrize(
    ("name", "experts", "width"),
    [
        ("moe_8", 8, 14336),
        ("moe_8_top_1", 8, 14336),
        ("moe_3", 3, 14336),
        ("moe_4_width_64", 4, 64),
    ],
)
def test_all_kept_experts_count(name: str, experts: int, width: int, dtype: str, tp: int) -> None:
    mixtral = ParentConfig.from_dict(CONFIGS["Mixtral-8x7B-v0.1"], name="mixtral")
    matrix, vector, _ = SIZES[dtype]
    expected = matrix * experts * 3 * 4096 * width // tp + vector * 4096 * (experts + 1)
    assert weight_bytes(parse_variant("ffn", name), mixtral, parse_dtype(dtype), tp) == expected


@pytest.mark.parametrize("subblock", ["attention", "ffn"])
def test_linear_and_no_op(subblock: str) -> None:
    fp8 = parse_dtype("fp8")
    linear, no_op = (parse_variant(subblock, name) for name in ("linear", "no_op"))  # type: ignore[arg-type]
    assert weight_bytes(linear, LLAMA, fp8, 2) == 8192 * 8192 // 2 + 2 * 8192
    assert weight_bytes(no_op, LLAMA, fp8, 2) == 0
    assert (
        kv_bytes_per_token(linear, LLAMA, fp8, 1) == kv_bytes_per_token(no_op, LLAMA, fp8, 1) == 0
    )


@pytest.mark.parametrize("tp", [1, 2, 8])
def test_a_devices_share_never_falls_below_a_fair_one_when_heads_do_not_divide(tp: int) -> None:
    # 5 KV heads on 2 devices: one of them holds 3, weights and cache alike.
    config = ParentConfig.from_dict(
        CONFIGS["Llama-3.1-8B"] | {"num_attention_heads": 40, "num_key_value_heads": 5,
                                   "hidden_size": 5120}, name="five",
    )  # fmt: skip
    local = {1: 5, 2: 3, 8: 1}[tp]
    variant, bf16 = parse_variant("attention", "gqa_5"), parse_dtype("bf16")
    expected = 2 * (2 * 5120 * 5120 // tp + 2 * 5120 * 128 * local) + 2 * 5120
    assert weight_bytes(variant, config, bf16, tp) == expected
    assert kv_bytes_per_token(variant, config, bf16, tp) == 2 * 128 * local * 2


@pytest.mark.parametrize(("dtype", "size"), [("fp8", 1), ("bf16", 2)])
def test_the_whole_parent_on_one_device(dtype: str, size: int) -> None:
    precision = parse_dtype(dtype)
    blocks = sum(
        weight_bytes(parse_variant(subblock, name), LLAMA, precision, 1)
        for subblock, name in (("attention", "gqa_8"), ("ffn", "mlp_28672"))
    )
    tables = 2 * 128256 * 8192
    vectors = 161 * 8192
    matrices = 70_553_706_496 - tables - vectors  # published total
    assert 80 * blocks + outside_bytes(LLAMA, precision, 1) == size * matrices + 2 * (
        tables + vectors
    )


def test_tied_embeddings_count_once() -> None:
    tied = ParentConfig.from_dict(CONFIGS["Llama-3.2-1B"], name="1b")
    assert outside_bytes(tied, parse_dtype("bf16"), 1) == 2 * (128256 * 2048 + 2048)
    assert outside_bytes(tied, parse_dtype("bf16"), 4) == 2 * (128256 * 2048 // 4 + 2048)


@pytest.mark.parametrize(("dtype", "published"), [("fp8", 94_976), ("bf16", 189_952)])
def test_kv_cache_of_nemotron_51b(shared_data: Path, dtype: str, published: int) -> None:
    file = shared_data / "nemotron" / "Llama-3_1-Nemotron-51B-Instruct.json"
    if not file.exists():
        pytest.skip("no published architecture beside this checkout")
    names = [
        f"gqa_{layer['num_kv_heads']}" if layer["attn"] == "gqa" else layer["attn"]
        for layer in json.loads(file.read_text())["layers"]
    ]
    total = sum(
        kv_bytes_per_token(parse_variant("attention", name), LLAMA, parse_dtype(dtype), 1)
        for name in names
    )
    assert total == published


def test_activations_by_hand() -> None:
    config = ParentConfig.from_dict(CONFIGS["Llama-3.1-8B"], name="8b")

    def of(batch: int, input_len: int, tp: int) -> int:
        return activation_bytes(
            config, parse_dtype("bf16"), batch=batch, input_len=input_len, tp=tp, widest_ffn=14336
        )

    assert of(2, 100, 1) == 200 * (4 * 4096 + 2 * 14336) * 2 + 2 * 128256 * 4
    assert of(2, 100, 2) == 200 * (4 * 4096 + 14336) * 2 + 128256 * 4
    # Prefill runs in chunks of 8192 tokens.
    assert of(64, 2048, 1) == 8192 * (4 * 4096 + 2 * 14336) * 2 + 64 * 128256 * 4


@pytest.mark.parametrize("serving", ["q8_0", "bf16"])
def test_matrices_of_a_type_of_their_own_have_its_bytes(serving: str) -> None:
    # llama.cpp's q4_0 is a scale of 2 bytes and 16 bytes of numbers for 32 weights.
    vector = {"q8_0": 4, "bf16": 2}[serving]
    dtype = parse_dtype(serving)
    ffn = weight_bytes(parse_variant("ffn", "mlp_14336@q4_0"), LLAMA, dtype, 1)
    assert ffn == 3 * 8192 * 14336 * 18 // 32 + vector * 8192
    attention = parse_variant("attention", "gqa_8@f16")
    expected = 2 * (2 * 8192 * 8192 + 2 * 8192 * 1024) + vector * 8192
    assert weight_bytes(attention, LLAMA, dtype, 1) == expected
    assert kv_bytes_per_token(attention, LLAMA, dtype, 1) == 2 * 1024 * 2


def test_an_unknown_dtype_names_those_there_are() -> None:
    with pytest.raises(InputError, match="int3") as caught:
        parse_dtype("int3")
    assert "fp8" in caught.value.remedy


def test_nvfp4_shares_an_fp8_scale_between_16_values() -> None:
    nvfp4, fp8 = parse_dtype("nvfp4"), parse_dtype("fp8")
    # Llama-70B's FFN: three matrices of 8192 x 28672, 9 bytes for 16 values, and its norm in bf16.
    variant = parse_variant("ffn", "mlp_28672")
    expected = 3 * 8192 * 28672 * 9 // 16 + 2 * 8192
    assert weight_bytes(variant, LLAMA, nvfp4, 1) == expected
    # The KV cache and what is outside the blocks are as under fp8.
    attention = parse_variant("attention", "gqa_8")
    assert kv_bytes_per_token(attention, LLAMA, nvfp4, 1) == 2 * 8 * 128
    assert outside_bytes(LLAMA, nvfp4, 2) == outside_bytes(LLAMA, fp8, 2)
