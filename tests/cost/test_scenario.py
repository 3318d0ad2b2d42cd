"""Scenarios as text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from puzzle_search.cost import Scenario
from puzzle_search.errors import InputError


@given(st.integers(1, 10**7), st.integers(1, 10**7))
def test_a_scenario_reads_back(input_len: int, output_len: int) -> None:
    scenario = Scenario.parse(f"{input_len}/{output_len}")
    assert (scenario.input_len, scenario.output_len) == (input_len, output_len)
    assert str(scenario) == f"{input_len}/{output_len}"


def test_prefill_gives_the_first_token() -> None:
    assert Scenario.parse("128/1024").decode_steps == 1023
    assert Scenario.parse("5/1").decode_steps == 0


@pytest.mark.parametrize(
    "text",
    ["", "128", "128/", "/1", "0/1", "1/0", "-1/2", "1.5/2", "1/2/3", "a/b", " 1/2", "1/2\n"],
)
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="INPUT/OUTPUT") as caught:
        Scenario.parse(text)
    assert "128/1024" in caught.value.remedy
