"""The reconstructed scores of Llama-3.1-70B: made as told, and better than depth alone."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from types import ModuleType

import numpy as np
import pytest
from scipy.stats import norm, truncnorm

from puzzle_search.solve import ScoreTable
from tests.pico import ROOT

EXAMPLE = ROOT / "examples" / "llama-3.1-70b"
SCRIPTS = ("layer_curve", "held_out", "make_scores")


@pytest.fixture(scope="module")
def scripts() -> Iterator[dict[str, ModuleType]]:
    sys.path.insert(0, str(EXAMPLE))
    yield {name: importlib.import_module(name) for name in SCRIPTS}
    sys.path.remove(str(EXAMPLE))
    for name in SCRIPTS:
        del sys.modules[name]


def test_the_shipped_table_is_the_curve_of_all_three_children(
    scripts: dict[str, ModuleType],
) -> None:
    curve, make = scripts["layer_curve"], scripts["make_scores"]
    children = make.read_children()
    length = curve.best_length(children)
    curves = {s: curve.posterior(children, s, children[0], length) for s in curve.SUBBLOCKS}
    made = list(make.rows_of(curves, {"attention": 1.0, "ffn": 1.0}))
    shipped = ScoreTable.from_file(EXAMPLE / "scores.csv").rows
    names = [(row.first_layer, row.attention, row.ffn) for row in made]
    assert names == [(row.first_layer, row.attention, row.ffn) for row in shipped]
    for part in ("attention", "ffn"):
        pairs = [(a, b) for a, b in zip(made, shipped, strict=True) if getattr(a, part)]
        ratio = np.array([b.value / a.value for a, b in pairs])
        assert ratio == pytest.approx(ratio[0], rel=2e-4)  # five digits are written
        shares = np.array([[a.stderr / a.value, b.stderr / b.value] for a, b in pairs])
        assert shares[:, 1] == pytest.approx(shares[:, 0], rel=2e-3)
        assert shares.min() > 0.5  # little is known


def test_children_that_took_no_part_are_predicted_better_than_by_depth_alone(
    scripts: dict[str, ModuleType],
) -> None:
    held_out, make = scripts["held_out"], scripts["make_scores"]
    found = held_out.compare(make.read_children())
    assert len(found) == 6
    for curve, valley, deeper in found.values():
        assert curve.rank > max(valley.rank, deeper.rank)
        assert curve.kept >= valley.kept
        assert curve.kept > deeper.kept
        assert curve.same > deeper.same


def test_the_page_says_what_leaving_out_gives(scripts: dict[str, ModuleType]) -> None:
    page = (EXAMPLE / "README.md").read_text(encoding="utf-8")
    assert scripts["held_out"].table(scripts["make_scores"].read_children()) in page


def test_agreement_of_a_known_order(scripts: dict[str, ModuleType]) -> None:
    curve, held_out = scripts["layer_curve"], scripts["held_out"]
    kept = np.array([3.0, 3.0, 1.0, 0.0, 3.0])
    child = curve.Child(name="five", family="x", kept={"ffn": kept})
    found = held_out.Agreement.of(np.array([9.0, 8.0, 2.0, 1.0, 7.0]), child, "ffn")
    assert (found.same, found.kept) == (5, 5)
    # The last layer is told to be left out, and the fourth to be kept.
    found = held_out.Agreement.of(np.array([9.0, 8.0, 2.0, 7.0, 1.0]), child, "ffn")
    assert (found.same, found.kept) == (3, 3)


def test_a_choice_tells_between_which_quantiles_its_layer_lies(
    scripts: dict[str, ModuleType],
) -> None:
    kept = np.array([9.0, 0.0, 9.0, 2.0])
    child = scripts["layer_curve"].Child(name="four", family="x", kept={"ffn": kept})
    low, high = child.intervals("ffn")
    assert norm.cdf(low) == pytest.approx([0.5, 0.0, 0.5, 0.25])
    assert norm.cdf(high) == pytest.approx([1.0, 0.25, 1.0, 0.5])


def test_the_likelihood_has_the_slope_and_curvature_of_a_truncated_normal(
    scripts: dict[str, ModuleType],
) -> None:
    curve = scripts["layer_curve"]
    latent = np.array([-0.4, 0.3, 1.1])
    low, high = np.array([-np.inf, -0.1, 0.2]), np.array([-0.2, 0.5, np.inf])
    slope, curvature = curve._likelihood(latent, low, high)
    cut = truncnorm((low - latent) / curve.NOISE, (high - latent) / curve.NOISE)
    # d log P = E[z] / noise, and its curvature is what truncation takes off the variance.
    assert slope == pytest.approx(cut.mean() / curve.NOISE)
    assert curvature == pytest.approx((1 - cut.var()) / curve.NOISE**2)
