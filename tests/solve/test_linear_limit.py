"""Linear limits: what they mean by hand, and what they refuse."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from puzzle_search.errors import InputError
from puzzle_search.solve.problem.linear_limit import Facts, parse_linear_limit

ITEMS: list[Facts] = [
    {"attention": "gqa_8", "ffn": "mlp_64", "layer": 0, "kv_heads": 8, "ffn_width": 64,
     "parameters": 100},
    {"attention": "no_op", "ffn": "mlp_64", "layer": 0, "kv_heads": 0, "ffn_width": 64,
     "parameters": 60},
    {"attention": "gqa_1", "ffn": "no_op", "layer": 1, "kv_heads": 1, "ffn_width": 0,
     "parameters": 10},
    {"attention": "linear", "ffn": "linear", "layer": 5, "kv_heads": 0, "ffn_width": 0,
     "parameters": 20},
]  # fmt: skip


def parsed(text: str) -> list[tuple[list[float], float]]:
    return [(lim.amounts.tolist(), lim.at_most) for lim in parse_linear_limit(text, ITEMS, 10)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('sum(attention == "no_op") <= 20', [([0, 1, 0, 0], 20)]),
        ('sum(attention != "no_op") >= 3', [([-1, 0, -1, -1], -3)]),
        ('mean(ffn in ("no_op", "linear")) <= 0.25', [([0, 0, 0.1, 0.1], 0.25)]),
        ("sum(kv_heads) == 9", [([8, 0, 1, 0], 9), ([-8, 0, -1, 0], -9)]),
        ("1 <= sum(layer >= 1) <= 2", [([0, 0, -1, -1], -1), ([0, 0, 1, 1], 2)]),
        ("sum(ffn_width) / 2 - 1 <= 2 * sum(kv_heads)", [([16, 32, -2, 0], 1)]),
        ("-sum(parameters) <= -150 + 10", [([-100, -60, -10, -20], -140)]),
        ("sum(kv_heads == 0 and not layer < 5) <= 1", [([0, 0, 0, 1], 1)]),
        # The same either way round, even where no item counts.
        ('sum(attention == "gqa_2") * 2 <= 4', [([0, 0, 0, 0], 4)]),
        ('2 * sum(attention == "gqa_2") <= 4', [([0, 0, 0, 0], 4)]),
        ('sum(attention == "gqa_8" or 2 * kv_heads - 1 == 1) <= 1', [([1, 0, 1, 0], 1)]),
    ],
)
def test_meaning(text: str, expected: list[tuple[list[float], float]]) -> None:
    assert parsed(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "sum(attention == 'no_op')",
        "sum(attention == 'no_op') < 20",
        "sum(attention == 'no_op') <= x",
        "sum(attention) <= 3",
        "sum(color == 'red') <= 3",
        "sum(kv_heads < 'a') <= 3",
        "sum(kv_heads) * sum(kv_heads) <= 3",
        "sum(kv_heads) / 0 <= 3",
        "1 / sum(kv_heads) <= 3",
        "sum(1 / kv_heads) <= 3",
        "sum(attention in 'gqa_16') <= 3",  # Python would look for a part of the text
        "sum(attention in ('gqa_16')) <= 3",
        "sum(attention == 3) <= 3",
        "sum(attention < 'gqa_8') <= 3",
        "sum(layer in (1, 'gqa_8')) <= 3",
        "sum((layer, 1) == (1, layer)) <= 3",
        "sum(layer is 3) <= 3",
        "sum(attention == 'noop') <= 3",
        "sum(attention in ('no_op', 'mlp_64')) <= 3",
        "sum(kv_heads) / sum(attention == 'gqa_2') <= 3",
        "max(kv_heads) <= 3",
        "sum(kv_heads, 1) <= 3",
        "__import__('os').system('true') <= 3",
        "sum(__import__('os')) <= 3",
        "sum((lambda: 1)()) <= 3",
        "sum(kv_heads ** 99999) <= 3",
        "True <= 3",
        "sum(kv_heads) <= 1e999",
        "(" * 500 + ")" * 500,
        "a\0b",
    ],
)
def test_what_is_not_linear_is_refused_by_name(text: str) -> None:
    with pytest.raises(InputError) as caught:
        parsed(text)
    assert repr(text) in caught.value.message
    assert caught.value.remedy


@given(st.text(max_size=40))
def test_any_text_is_a_limit_or_refused(text: str) -> None:
    try:
        parsed(text)
    except InputError:
        return


@given(weights=st.lists(st.integers(-3, 3), min_size=4, max_size=4), high=st.integers(-5, 5))
def test_a_weighted_sum_over_layers(weights: list[int], high: int) -> None:
    terms = " + ".join(
        f"{w} * sum(layer == {n})" for w, n in zip(weights, (0, 1, 5, 7), strict=True)
    )
    ((amounts, at_most),) = parsed(f"{terms} <= {high}")
    assert np.allclose(amounts, [weights[0], weights[0], weights[1], weights[2]])
    assert at_most == high
