"""Bring a way of choosing children to a throughput that is measured, not predicted."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from puzzle_search.arch import ArchitectureSpec
from puzzle_search.errors import InfeasibleError

# The architecture for a predicted speed-up; None where there is none.
Choose = Callable[[float], ArchitectureSpec | None]

TOLERANCE = 0.03
_CORRECTIONS = 2
# A target moves no further than this power of what is missing: measurements are not exact.
_STEEPEST = 3.0


@dataclass(frozen=True, kw_only=True)
class Paired:
    """A child with the throughput that it was brought to.

    Attributes:
        spec: its architecture.
        target: speed-up that the prediction was asked for.
        measured: its measured speed-up.
        tries: architectures that were measured.
    """

    spec: ArchitectureSpec
    target: float
    measured: float
    tries: int


def pair(
    asked: float, choose: Choose, measure: Callable[[ArchitectureSpec], float]
) -> Paired | None:
    """The child whose measured speed-up is nearest to what is asked, after two corrections at most.

    The first correction takes the error of the prediction as a constant factor, the second one is
    the secant through both measurements, in logarithms.

    Args:
        asked: measured speed-up to reach within ``TOLERANCE``; ways with few choices may not.
        choose: the architecture for a predicted speed-up.
        measure: the measured speed-up of an architecture.

    Returns:
        The nearest one; None where the way gives none for a prediction of what is asked.

    Raises:
        InfeasibleError: no architecture is predicted to be as fast as asked.
    """
    found: list[Paired] = []
    target = asked
    for number in range(1, _CORRECTIONS + 2):
        try:
            spec = choose(target)
        except InfeasibleError:
            if not found:
                raise
            break
        if spec is None:
            break
        found.append(Paired(spec=spec, target=target, measured=measure(spec), tries=number))
        if abs(found[-1].measured / asked - 1) <= TOLERANCE:
            break
        target = _corrected(asked, found)
    if not found:
        return None
    best = min(found, key=lambda one: abs(math.log(one.measured / asked)))
    return Paired(spec=best.spec, target=best.target, measured=best.measured, tries=len(found))


def _corrected(asked: float, found: list[Paired]) -> float:
    last, power = found[-1], 1.0
    if len(found) > 1 and found[-2].measured != last.measured:
        rise = math.log(last.measured / found[-2].measured)
        power = math.log(last.target / found[-2].target) / rise
        power = min(max(power, 1 / _STEEPEST), _STEEPEST)
    return float(last.target * (asked / last.measured) ** power)
