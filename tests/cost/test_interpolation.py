"""Curves and lattices against closed forms and scipy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.interpolate import RegularGridInterpolator

from puzzle_search.cost.measured.interpolation import Curve, Lattice

axis = st.lists(st.integers(1, 5000), min_size=1, max_size=5, unique=True)
positive = st.floats(0.01, 100)


@given(knots=axis, a=positive, b=positive, u=st.floats(0, 1))
def test_a_curve_is_exact_for_a_line(knots: list[int], a: float, b: float, u: float) -> None:
    curve = Curve({knot: a + b * knot for knot in knots})
    at = min(knots) + u * (max(knots) - min(knots))
    assert curve.at(at) == pytest.approx(a + b * at)
    assert np.isnan(curve.at([min(knots) - 0.5, max(knots) + 0.5])).all()


@given(
    xs=axis, ys=axis, a=positive, b=positive, c=positive, d=positive,
    u=st.floats(0, 1), v=st.floats(0, 1),
)  # fmt: skip
def test_a_lattice_is_exact_for_bilinear_costs(
    xs: list[int], ys: list[int], a: float, b: float, c: float, d: float, u: float, v: float
) -> None:
    lattice = Lattice({(x, y): a + b * x + c * y + d * x * y for x in xs for y in ys})
    x, y = min(xs) + u * (max(xs) - min(xs)), min(ys) + v * (max(ys) - min(ys))
    assert lattice.at(x, y) == pytest.approx(a + b * x + c * y + d * x * y, rel=1e-9)
    assert np.isnan(lattice.at(max(xs) + 0.5, y))
    assert np.isnan(lattice.at(x, min(ys) - 0.5))


@given(seed=st.integers(0, 10**6))
def test_lattices_agree_with_scipy(seed: int) -> None:
    rng = np.random.default_rng(seed)
    xs, ys = (np.sort(rng.choice(1000, 4, replace=False)) for _ in range(2))
    values = rng.uniform(1, 100, (4, 4))
    points = {
        (float(x), float(y)): values[i, j] for i, x in enumerate(xs) for j, y in enumerate(ys)
    }
    x, y = rng.uniform(xs[0], xs[-1], 20), rng.uniform(ys[0], ys[-1], 20)
    expected = RegularGridInterpolator((xs, ys), values)(np.stack([x, y], axis=1))
    np.testing.assert_allclose(Lattice(points).at(x, y), expected)


def test_a_far_corner_that_is_missing_follows_a_power_law() -> None:
    power = {(x, y): 3.0 * x**0.7 * y**1.2 for x in (2, 8) for y in (10, 40)}
    whole = Lattice(power)
    far = power.pop((8, 40))
    cut = Lattice(power)
    assert cut.at(8, 40) == pytest.approx(far)
    np.testing.assert_allclose(cut.at([3, 5, 8], [20, 39, 15]), whole.at([3, 5, 8], [20, 39, 15]))


def test_what_lacks_more_than_the_far_corner_is_known_on_its_edges_alone() -> None:
    #  y   10   20   40
    #  1  1.0  2.0  4.0
    #  2  2.0   -    -
    #  4  4.0   -    -
    values = {(1, 10): 1.0, (1, 20): 2.0, (1, 40): 4.0, (2, 10): 2.0, (4, 10): 4.0}
    lattice = Lattice(values)
    # The first cell lacks its far corner alone, 2 x 2 / 1; its edges are those of its neighbours.
    np.testing.assert_allclose(lattice.at([2, 2, 1.5], [20, 15, 20]), [4.0, 3.0, 3.0])
    assert lattice.at(1, 30) == 3.0
    assert lattice.at(3, 10) == 3.0
    assert np.isnan(lattice.at([1.5, 2, 3, 3], [30, 30, 15, 30])).all()
