"""When a bench does not tell which model is faster."""

from __future__ import annotations

import pytest

from puzzle_search.evaluate import spread_remarks


def figures(median: float, p10: float, p90: float) -> dict[str, float]:
    return {"tokens_per_second": median, "p10": p10, "p90": p90}


@pytest.mark.parametrize(
    ("child", "told"),
    [
        (figures(110, 108, 113), False),  # 10 apart, 9 spread
        (figures(108, 107, 109), True),  # 8 apart, and the parent spreads by 9
        (figures(150, 120, 180), True),  # 50 apart, 60 spread
        (figures(90, 88, 92), False),
    ],
)
def test_a_spread_beyond_the_difference_is_told(child: dict[str, float], told: bool) -> None:
    models = {"parent": figures(100, 95, 104), "child": child}
    said = list(spread_remarks(models, "--num-iters"))
    assert bool(said) == told
    assert all("child and parent differ by" in one and "--num-iters" in one for one in said)


def test_each_model_is_held_against_the_first() -> None:
    plain = figures(100, 90, 110)
    said = list(spread_remarks({"a": plain, "b": figures(200, 195, 205), "c": plain}, "x"))
    assert [one.split(" differ")[0] for one in said] == ["c and a"]
    assert list(spread_remarks({"a": plain}, "x")) == []
