"""Children are brought to a measured throughput; what is measured is a formula here."""

from __future__ import annotations

import math
from types import ModuleType

import pytest

from puzzle_search.arch import ArchitectureSpec
from puzzle_search.errors import InfeasibleError
from tests.pico import ROOT


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "experiments" / "paper"))
    import paper_pairing

    return paper_pairing


def spec_for(target: float) -> ArchitectureSpec:
    """A spec that carries the speed-up it was predicted to have."""
    return ArchitectureSpec.of("parent", [("gqa_1", "mlp_256")], target=target)


def target_of(spec: ArchitectureSpec) -> float:
    return float(spec.solution["target"])


@pytest.mark.parametrize("factor", [0.98, 1.0, 1.02])
def test_what_is_near_enough_is_measured_once(bench: ModuleType, factor: float) -> None:
    found = bench.pair(1.5, spec_for, lambda spec: factor * target_of(spec))
    assert (found.tries, found.target) == (1, 1.5)
    assert found.measured == pytest.approx(1.5 * factor)


@pytest.mark.parametrize("factor", [0.6, 0.9, 1.2])
def test_a_constant_error_takes_one_correction(bench: ModuleType, factor: float) -> None:
    found = bench.pair(2.17, spec_for, lambda spec: factor * target_of(spec))
    assert found.tries == 2
    assert found.measured == pytest.approx(2.17)
    assert found.target == pytest.approx(2.17 / factor)


@pytest.mark.parametrize(("factor", "power"), [(0.8, 0.6), (1.3, 0.5), (0.9, 1.8)])
def test_a_power_law_takes_two(bench: ModuleType, factor: float, power: float) -> None:
    """In logarithms it is a line, on which the secant is exact."""
    found = bench.pair(2.0, spec_for, lambda spec: factor * target_of(spec) ** power)
    assert found.tries == 3
    assert found.measured == pytest.approx(2.0)
    assert found.target == pytest.approx((2.0 / factor) ** (1 / power))


def test_coarse_choices_give_the_nearest(bench: ModuleType) -> None:
    """Steps of a half: 1.5 and 2 are left, and 1.5 is nearer to 1.7 as a ratio."""
    found = bench.pair(1.7, spec_for, lambda spec: math.floor(2 * target_of(spec)) / 2)
    assert found.measured == 1.5
    assert found.tries == 3


def test_a_correction_that_cannot_be_met_is_left(bench: ModuleType) -> None:
    def choose(target: float) -> ArchitectureSpec | None:
        if target > 3.3:
            raise InfeasibleError("too fast", remedy="ask for less")
        return spec_for(target)

    found = bench.pair(3.2, choose, lambda spec: 0.9 * target_of(spec))
    assert (found.tries, found.target) == (1, 3.2)
    with pytest.raises(InfeasibleError):
        bench.pair(3.5, choose, lambda spec: target_of(spec))


def test_a_way_without_an_answer_has_none(bench: ModuleType) -> None:
    assert bench.pair(1.5, lambda target: None, lambda spec: 1.0) is None
    few = bench.pair(1.5, lambda target: spec_for(target) if target < 2 else None, lambda spec: 0.6)
    assert (few.tries, few.target) == (1, 1.5)


def test_equal_measurements_do_not_divide_by_zero(bench: ModuleType) -> None:
    found = bench.pair(1.5, spec_for, lambda spec: 1.2)
    assert (found.tries, found.measured, found.target) == (3, 1.2, 1.5)
