"""Canonical strings of variants."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from puzzle_search.arch import Gqa, Linear, Mlp, Moe, NoOp, ParentConfig, Variant, parse_variant
from puzzle_search.arch.variants import check_variant
from puzzle_search.errors import InputError

SIZES = st.integers(1, 999_999_999)
TYPES = st.sampled_from([None, "q8_0", "q4_0", "f16", "fp8"])
LINEAR = st.builds(Linear, weights=TYPES)
ATTENTION = st.builds(Gqa, SIZES, st.none() | SIZES, weights=TYPES) | LINEAR | st.builds(NoOp)
EXPERTS = st.builds(Moe, SIZES, st.none() | SIZES, st.none() | SIZES, weights=TYPES)
FFN = st.builds(Mlp, SIZES, weights=TYPES) | EXPERTS | LINEAR | st.builds(NoOp)


def test_canonical_strings() -> None:
    assert parse_variant("attention", "gqa_8") == Gqa(8)
    assert parse_variant("attention", "gqa_8_window_8192") == Gqa(8, 8192)
    assert parse_variant("ffn", "mlp_28672") == Mlp(28672)
    assert parse_variant("ffn", "mlp_28672@q4_0") == Mlp(28672, weights="q4_0")
    assert parse_variant("ffn", "moe_64") == Moe(64)
    assert parse_variant("ffn", "moe_64_top_4") == Moe(64, top_k=4)
    assert parse_variant("ffn", "moe_64_width_512") == Moe(64, width=512)
    assert parse_variant("ffn", "moe_64_top_4_width_512") == Moe(64, 4, 512)
    for subblock in ("attention", "ffn"):
        assert parse_variant(subblock, "linear") == Linear()
        assert parse_variant(subblock, "no_op") == NoOp()


@given(ATTENTION)
def test_attention_round_trip(variant: Variant) -> None:
    assert parse_variant("attention", str(variant)) == variant


@given(FFN)
def test_ffn_round_trip(variant: Variant) -> None:
    assert parse_variant("ffn", str(variant)) == variant


@given(st.text() | st.from_regex(r"(gqa|mlp|moe|linear|no_op)_?.*|gqa_1@.*"))
def test_text_parses_to_itself_or_is_refused(text: str) -> None:
    for subblock in ("attention", "ffn"):
        try:
            assert str(parse_variant(subblock, text)) == text
        except InputError as error:
            assert repr(text) in error.message


@pytest.mark.parametrize(
    ("subblock", "text"),
    [
        ("attention", "mlp_128"),
        ("ffn", "gqa_2"),
        ("attention", "gqa_0"),
        ("attention", "gqa_08"),
        ("attention", "gqa_-1"),
        ("attention", "gqa_٨"),
        ("attention", "gqa_8\n"),
        ("attention", "GQA_8"),
        ("attention", "gqa_8_window_0"),
        ("attention", "gqa_8_window_"),
        ("attention", "window_8"),
        ("ffn", "mlp_8_window_4"),
        ("attention", "gqa_" + "9" * 5000),
        ("ffn", "mlp_"),
        ("attention", "moe_8"),
        ("ffn", "moe_8_width_64_top_2"),
        ("ffn", "moe_08"),
        ("ffn", "moe_8_top_"),
        ("ffn", "noop"),
        ("ffn", ""),
    ],
)
def test_other_strings_are_refused(subblock: Any, text: str) -> None:
    with pytest.raises(InputError, match="is not a variant of") as caught:
        parse_variant(subblock, text)
    assert "no_op" in caught.value.remedy


@pytest.mark.parametrize(
    ("text", "told"),
    [("gqa_2@", "''"), ("gqa_2@q9", "'q9'"), ("gqa_2@q4_0@q4_0", "'q4_0@q4_0'"),
     ("no_op@q4_0", "no weights")],
)  # fmt: skip
def test_types_of_weights_that_are_refused(text: str, told: str) -> None:
    with pytest.raises(InputError, match=f"'{text}': .*{told}"):
        parse_variant("attention", text)


@pytest.mark.parametrize(
    "variant", [Gqa(1), Gqa(2), Gqa(2, 7), Mlp(1), Mlp(128), Linear(), NoOp()], ids=str
)
def test_what_fits(pico_config: ParentConfig, variant: Variant) -> None:
    check_variant(variant, pico_config)


@pytest.mark.parametrize("variant", [Gqa(3), Gqa(4), Gqa(8), Mlp(129), Moe(2)], ids=str)
def test_what_does_not_fit(pico_config: ParentConfig, variant: Variant) -> None:
    with pytest.raises(InputError, match=str(variant)) as caught:
        check_variant(variant, pico_config)
    assert "pico" in caught.value.message


def test_a_window_is_shorter_than_what_the_parent_attends_to(pico_raw: dict[str, Any]) -> None:
    full = ParentConfig.from_dict(pico_raw, name="full")
    windowed = ParentConfig.from_dict(
        {**pico_raw, "model_type": "mistral", "sliding_window": 64}, name="windowed"
    )
    longest = full.max_position_embeddings
    check_variant(Gqa(2, longest - 1), full)
    check_variant(Gqa(2, 63), windowed)
    for config, window in ((full, longest), (full, longest + 1), (windowed, 64), (windowed, 65)):
        with pytest.raises(InputError, match=f"gqa_2_window_{window} bounds nothing") as caught:
            check_variant(Gqa(2, window), config)
        assert "gqa_2" in caught.value.remedy
    assert Gqa(2, 5).window(windowed) == 5
    assert Gqa(2).window(windowed) == 64
    assert Gqa(2).window(full) is None


@pytest.fixture
def moe_config(pico_raw: dict[str, Any]) -> ParentConfig:
    """The three-layer model with eight experts, of which a token passes two."""
    experts = {"model_type": "mixtral", "num_local_experts": 8, "num_experts_per_tok": 2}
    return ParentConfig.from_dict(pico_raw | experts, name="pico")


@pytest.mark.parametrize(
    "text", ["moe_8", "moe_2", "moe_8_top_1", "moe_1_top_1", "moe_4_width_64", "linear", "no_op"]
)
def test_what_fits_a_parent_with_experts(moe_config: ParentConfig, text: str) -> None:
    check_variant(parse_variant("ffn", text), moe_config)


@pytest.mark.parametrize(
    ("text", "remedy"),
    [
        ("moe_9", "up to"),
        ("moe_1", "moe_1_top_1"),
        ("moe_8_top_3", "moe_8_top_2"),
        ("moe_8_top_2", "leave it out"),
        ("moe_8_width_128", "leave it out"),
        ("moe_8_width_136", "such a width"),
        ("moe_8_width_60", "such a width"),
        ("mlp_128", "moe_<experts>"),
    ],
)
def test_what_does_not_fit_a_parent_with_experts(
    moe_config: ParentConfig, text: str, remedy: str
) -> None:
    with pytest.raises(InputError, match=text) as caught:
        check_variant(parse_variant("ffn", text), moe_config)
    assert remedy in caught.value.remedy
