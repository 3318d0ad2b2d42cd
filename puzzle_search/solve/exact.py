"""The exact step: settle the choices that the relaxation could not rule out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from puzzle_search.errors import InputError
from puzzle_search.solve.problem import Choice, PointProblem

Backend = Literal["highs", "scip", "cp-sat"]


@dataclass(frozen=True, kw_only=True)
class CoreResult:
    """Outcome of the exact search at one operating point.

    Attributes:
        choice: a choice no worse than the incumbent, if one was found.
        bound: no choice at this point has less damage.
        finished: the search ended by proof, not by the clock.
    """

    choice: Choice | None
    bound: float
    finished: bool


def solve_core(
    point: PointProblem,
    kept: np.ndarray,
    *,
    lower: float,
    incumbent: float,
    seconds: float,
    backend: Backend,
) -> CoreResult:
    """Search the kept choices for less damage than ``incumbent``.

    Args:
        point: the problem.
        kept: (layers, choices), true for choices that may be in a better answer.
        lower: a valid lower bound.
        incumbent: damage to beat; infinite if no answer is known.
        seconds: time limit.
        backend: which solver.

    Raises:
        InputError: the back end is not known.
    """
    # Each back end takes a good part of a second to import, and easy problems need none.
    if backend == "cp-sat":
        from puzzle_search.solve import cpsat

        return cpsat.solve_core(point, kept, lower=lower, incumbent=incumbent, seconds=seconds)
    if backend in get_args(Backend):
        from puzzle_search.solve import mip

        return mip.solve_core(
            point, kept, lower=lower, incumbent=incumbent, seconds=seconds, backend=backend
        )
    raise InputError(
        f"back end {backend!r} is not known", remedy=f"use one of {', '.join(get_args(Backend))}"
    )
