"""Where to measure next, against functions whose values are known everywhere."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from puzzle_search.cost.measured.interpolation import Lattice
from puzzle_search.profile.sampling.refine import TOLERANCE, LatticeSearch, Place

Cost = Callable[[int, int], float]


def explore(
    search: LatticeSearch, cost: Cost, *, spread: float = 0.0, most: int = 10_000
) -> dict[Place, float]:
    """Answer what a search wants, the most urgent first; everything that was measured."""
    measured: dict[Place, float] = {}
    while (wanted := search.wanted()) and len(measured) < most:
        place = max(wanted, key=lambda at: wanted[at])
        assert place not in measured, "measured twice"
        measured[place] = cost(*place)
        search.take(place, measured[place], spread)
    return measured


def lattice(search: LatticeSearch, cost: Cost) -> Lattice:
    return Lattice({place: cost(*place) for place in search.places})


def roofline(rows: int, _: int) -> float:
    """Memory-bound, then compute-bound, with a smooth corner."""
    return float((300.0**4 + (0.9 * rows) ** 4) ** 0.25)


def prompts(sequences: int, tokens: int) -> float:
    """Matrices by tokens, attention by their square, a launch."""
    return 20.0 + sequences * (0.5 * tokens + 2e-5 * tokens**2)


def test_what_is_linear_is_checked_once_between_knots_and_not_refined() -> None:
    search = LatticeSearch([1, 4, 16, 64])
    measured = explore(search, lambda x, _: 5.0 + 3.0 * x)
    assert sorted(x for x, _ in measured) == [1, 2, 4, 8, 16, 32, 64]
    assert search.errors == pytest.approx([0, 0, 0])
    assert sorted(search.places) == sorted(measured), "a curve keeps what was held out"


def test_a_bilinear_cost_needs_no_more_than_a_check_a_cell() -> None:
    search = LatticeSearch([1, 16, 256], [128, 2048])
    measured = explore(search, lambda x, y: 7.0 + 2.0 * x + 0.1 * x * y)
    assert len(measured) == 6 + 2
    assert len(search.places) == 6
    assert max(search.errors) < 1e-9


def test_a_roofline_is_within_the_tolerance_everywhere_with_few_points() -> None:
    search = LatticeSearch([1, 16, 64, 256, 1024, 8192])
    measured = explore(search, roofline)
    rows = np.arange(1, 8193)
    exact = np.array([roofline(int(r), 1) for r in rows])
    error = np.abs(lattice(search, roofline).at(rows, 1) / exact - 1)
    assert error.max() <= TOLERANCE
    assert max(search.errors) <= TOLERANCE
    assert len(measured) <= 20


def test_prompts_are_within_the_tolerance_wherever_a_chunk_holds_them() -> None:
    search = LatticeSearch(
        [1, 4, 16, 64],
        [128, 512, 2048, 8192],
        asked=lambda b, t: b * t <= 8192,
        overhang=True,
        first_cut=1,
    )
    measured = explore(search, prompts)
    between = lattice(search, prompts)
    asked = [(b, t) for t in range(128, 8193, 37) for b in range(1, 8192 // t + 1)]
    predicted = between.at(*np.array(asked).T)
    exact = np.array([prompts(*place) for place in asked])
    # The corners that are not measured are a power law through the others: a little off.
    assert np.abs(predicted / exact - 1).max() <= 1.5 * TOLERANCE
    assert max(search.errors) <= TOLERANCE
    assert len(measured) <= 45


def test_the_worst_is_refined_first() -> None:
    search = LatticeSearch([1, 64, 4096])
    explore(search, lambda x, _: 1.0, most=3)
    # Held out: 8 is 10% off, 512 is 50% off.
    for place in ((8, 1), (512, 1)):
        assert place in search.wanted()
    search.take((8, 1), 1 / 1.1, 0.0)
    search.take((512, 1), 1 / 1.5, 0.0)
    wanted = search.wanted()
    order = sorted(wanted, key=lambda at: -wanted[at])
    assert {x for x, _ in order[:2]} == {181, 1448}
    assert {x for x, _ in order[2:]} == {3, 23}


def test_errors_within_the_spread_mean_nothing() -> None:
    search = LatticeSearch([1, 64])
    explore(search, lambda x, _: 1.0 if x in (1, 64) else 1.2, spread=0.25)
    assert search.errors == pytest.approx([1 - 1 / 1.2])
    assert search.wanted() == {}


def test_what_is_not_adaptive_is_measured_exactly() -> None:
    search = LatticeSearch([1, 8], [9, 16], adaptive=False)
    assert set(explore(search, prompts)) == {(1, 9), (1, 16), (8, 9), (8, 16)}
    assert search.errors == []


def test_one_axis_that_cannot_be_cut_is_cut_along_the_other() -> None:
    search = LatticeSearch([1, 2], [1, 100])
    measured = explore(search, lambda x, y: float(x * y**2))
    assert {x for x, _ in measured} == {1, 2}
    assert max(search.errors) <= TOLERANCE


def test_a_lost_place_is_a_gap_and_the_rest_goes_on() -> None:
    search = LatticeSearch([1, 4, 16], [128, 512])
    while wanted := search.wanted():
        place = next(iter(wanted))
        if place == (16, 512):
            search.lose(place)
        else:
            search.take(place, prompts(*place), 0.0)
    assert (16, 512) not in search.places
    assert not np.isnan(lattice(search, prompts).at(8, 300)), "but for the far corner all is there"


@given(
    batches=st.sets(st.integers(1, 64), min_size=1, max_size=4),
    tokens=st.sets(st.integers(1, 512), min_size=1, max_size=4),
    stop=st.integers(0, 60),
    bend=st.floats(0, 1e-2),
)
def test_whenever_time_is_up_all_that_is_asked_lies_between_measured_points(
    batches: set[int], tokens: set[int], stop: int, bend: float
) -> None:
    def cost(b: int, t: int) -> float:
        return 1.0 + b * t + bend * b * t**2

    limit = 512
    assume(min(batches) * min(tokens) <= limit)
    search = LatticeSearch(
        batches, tokens, asked=lambda b, t: b * t <= limit, overhang=True, first_cut=1
    )
    base = len(search.wanted())
    explore(search, cost, most=base + stop)
    between = lattice(search, cost)
    asked = [
        (b, t)
        for b in range(min(batches), max(batches) + 1)
        for t in range(min(tokens), max(tokens) + 1)
        if b * t <= limit
    ]
    assert not np.isnan(between.at(*np.array(asked).T)).any()
