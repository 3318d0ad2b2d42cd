"""Canonical strings of variants."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from puzzle_search.arch import Gqa, Linear, Mlp, NoOp, ParentConfig, Variant, parse_variant
from puzzle_search.arch.variants import check_variant
from puzzle_search.errors import InputError

SIZES = st.integers(1, 999_999_999)
ATTENTION = st.builds(Gqa, SIZES, st.none() | SIZES) | st.builds(Linear) | st.builds(NoOp)
FFN = st.builds(Mlp, SIZES) | st.builds(Linear) | st.builds(NoOp)


def test_canonical_strings() -> None:
    assert parse_variant("attention", "gqa_8") == Gqa(8)
    assert parse_variant("attention", "gqa_8_window_8192") == Gqa(8, 8192)
    assert parse_variant("ffn", "mlp_28672") == Mlp(28672)
    for subblock in ("attention", "ffn"):
        assert parse_variant(subblock, "linear") == Linear()
        assert parse_variant(subblock, "no_op") == NoOp()


@given(ATTENTION)
def test_attention_round_trip(variant: Variant) -> None:
    assert parse_variant("attention", str(variant)) == variant


@given(FFN)
def test_ffn_round_trip(variant: Variant) -> None:
    assert parse_variant("ffn", str(variant)) == variant


@given(st.text() | st.from_regex(r"(gqa|mlp|linear|no_op)_?.*"))
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
        ("ffn", "noop"),
        ("ffn", ""),
    ],
)
def test_other_strings_are_refused(subblock: Any, text: str) -> None:
    with pytest.raises(InputError, match="is not a variant of") as caught:
        parse_variant(subblock, text)
    assert "no_op" in caught.value.remedy


@pytest.mark.parametrize(
    "variant", [Gqa(1), Gqa(2), Gqa(2, 7), Mlp(1), Mlp(128), Linear(), NoOp()], ids=str
)
def test_what_fits(pico_config: ParentConfig, variant: Variant) -> None:
    check_variant(variant, pico_config)


@pytest.mark.parametrize("variant", [Gqa(3), Gqa(4), Gqa(8), Mlp(129)], ids=str)
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
