"""The exact step: settle the choices that the relaxation could not rule out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, cast, get_args

import numpy as np
from numpy.typing import NDArray

from puzzle_search.errors import InputError
from puzzle_search.solve.problem import Choice, Floats, PointProblem

Backend = Literal["highs", "scip", "cp-sat"]


@dataclass(frozen=True, kw_only=True)
class Core:
    """What is left to choose from; an item is one choice of one layer.

    Damage is told above the least of its layer and in units of what is at stake, so that the
    solvers' tolerances mean the same for scores of any size and sign.

    Attributes:
        layers: (items,), ascending.
        columns: (items,), the choice's column in the point problem.
        weights: (items,), damage. Items that are out of the question stand at 2.
        cutoff: weight that an answer must stay below, 1 or less; infinite without an incumbent.
    """

    layers: NDArray[np.intp]
    columns: Choice
    weights: Floats
    cutoff: float

    @property
    def num_layers(self) -> int:
        """Layers to choose for."""
        return int(self.layers[-1]) + 1


@dataclass(frozen=True, kw_only=True)
class CoreResult:
    """Outcome of the exact search at one operating point.

    Attributes:
        choice: the best choice found, within the limits up to the solver's tolerance, if any.
        bound: no kept choice has less damage; the incumbent's damage if it cannot be beaten.
    """

    choice: Choice | None
    bound: float


def parse_backend(name: str) -> Backend:
    """The back end of that name.

    Raises:
        InputError: it is not known.
    """
    if name not in get_args(Backend):
        raise InputError(
            f"back end {name!r} is not known", remedy=f"use one of {', '.join(get_args(Backend))}"
        )
    return cast(Backend, name)


def solve_core(
    point: PointProblem,
    kept: NDArray[np.bool_],
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
    parse_backend(backend)
    base = np.where(kept, point.damage, np.inf).min(axis=1)
    floor = float(base.sum())
    if floor >= incumbent:  # also a layer with nothing left
        return CoreResult(choice=None, bound=incumbent)
    above = np.where(kept, point.damage - base[:, None], 0.0)
    unit = min(incumbent - floor, float(above.max(axis=1).sum())) or 1.0
    layers, columns = np.nonzero(kept)
    core = Core(
        layers=layers,
        columns=columns,
        weights=np.minimum(above[layers, columns] / unit, 2.0),
        cutoff=(incumbent - floor) / unit,
    )
    # Each back end takes a good part of a second to import, and easy problems need none.
    if backend == "cp-sat":
        from puzzle_search.solve import cpsat

        choice, proven = cpsat.solve(point, core, seconds=seconds)
    else:
        from puzzle_search.solve import mip

        choice, proven = mip.solve(point, core, seconds=seconds, backend=backend)
    return CoreResult(choice=choice, bound=min(max(lower, floor + unit * proven), incumbent))
