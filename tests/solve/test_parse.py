"""Limits as people type them."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from puzzle_search.errors import InputError
from puzzle_search.solve import Limits
from puzzle_search.solve.question.fleet import Offer, parse_offers
from puzzle_search.solve.question.parse import (
    parse_bytes,
    parse_fraction,
    parse_layers,
    parse_scenario,
)


def test_a_scenario_may_have_limits_of_its_own() -> None:
    otherwise = Limits(tokens_per_second_per_gpu=100.0, ttft_ms=9.0)
    assert parse_scenario("128/1024", otherwise) == ("128/1024", otherwise)
    text, limits = parse_scenario("2048/128:tps=900, user-tps=30,tpot=20,latency=1e4", otherwise)
    assert text == "2048/128"
    assert limits == Limits(
        tokens_per_second_per_gpu=900,
        tokens_per_second_per_user=30,
        ttft_ms=9,
        tpot_ms=20,
        latency_ms=1e4,
    )


@pytest.mark.parametrize(
    ("text", "size"),
    [("80GB", 80e9), ("80000MiB", 80000 * 2**20), ("1.5 GiB", 1.5 * 2**30), ("12", 12)],
)
def test_bytes(text: str, size: float) -> None:
    assert parse_bytes(text) == size


def test_layers_and_fractions() -> None:
    assert parse_layers("0,1, 76-79") == {0, 1, 76, 77, 78, 79}
    assert parse_fraction("5%") == pytest.approx(0.05)
    assert parse_fraction("0.05") == 0.05


def test_offers() -> None:
    assert parse_offers("h100") == [Offer(gpu="h100", usd_per_hour=None)]
    assert parse_offers("l40s=0.9, profiles/my-gpu=2") == [
        Offer(gpu="l40s", usd_per_hour=0.9),
        Offer(gpu="profiles/my-gpu", usd_per_hour=2.0),
    ]


@pytest.mark.parametrize(
    ("parse", "text"),
    [
        (lambda t: parse_scenario(t, Limits()), "128/1024:speed=3"),
        (lambda t: parse_scenario(t, Limits()), "128/1024:tps=fast"),
        (lambda t: parse_scenario(t, Limits()), "128/1024:tps=-1"),
        (lambda t: parse_scenario(t, Limits()), "128/1024:tps=nan"),
        (parse_bytes, "80 gigs"),
        (parse_bytes, ""),
        (parse_bytes, "1.2.3GB"),
        (parse_layers, "3-1"),
        (parse_layers, "a"),
        (parse_layers, ""),
        (parse_fraction, "-5%"),
        (parse_fraction, "much"),
        (parse_fraction, "inf"),
        (parse_offers, "h100=2,l40s"),
        (parse_offers, "h100=0,l40s=0"),
        (parse_offers, "h100,,l40s"),
    ],
)
def test_what_cannot_be_read_is_refused(parse: Callable[[str], object], text: str) -> None:
    with pytest.raises(InputError) as caught:
        parse(text)
    assert caught.value.remedy
