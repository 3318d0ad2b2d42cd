"""The exact step: settle the items that the relaxation could not rule out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from puzzle_search.choices import Backend
from puzzle_search.solve.problem.items import Selection
from puzzle_search.solve.problem.point import PointProblem
from puzzle_search.solve.search.exact.formulations import formulate_core
from puzzle_search.solve.search.exact.program import STAKE, ProgramSolver


@dataclass(frozen=True, kw_only=True)
class CoreResult:
    """Outcome of the exact search at one operating point.

    Attributes:
        selection: the best one found, within the limits up to the solver's tolerance, if any.
        bound: no selection of the kept items has a smaller objective; the incumbent's if it
            cannot be beaten.
    """

    selection: Selection | None
    bound: float


def solve_core(
    point: PointProblem,
    kept: NDArray[np.bool_],
    *,
    lower: float,
    incumbent: float,
    seconds: float,
    backend: Backend,
) -> CoreResult:
    """Search the kept items for an objective below ``incumbent``.

    Args:
        point: the problem.
        kept: (items,), true for items that may be in a better answer.
        lower: a valid lower bound.
        incumbent: objective to beat; infinite if no answer is known.
        seconds: time limit.
        backend: which solver.
    """
    (columns,) = np.nonzero(kept)
    items, objective = point.items.kept(kept), point.objective[columns]
    potentials = items.potentials(objective)
    floor = float(potentials[-1]) + point.offset
    if floor >= incumbent:  # also where a layer has nothing left
        return CoreResult(selection=None, bound=incumbent)
    solve_program = _solver(backend)
    with np.errstate(invalid="ignore"):  # of boundaries that no kept items meet at
        spans = potentials[point.items.last + 1] - potentials[point.items.first]
    weights = point.objective - spans
    unit = min(incumbent - floor, float(weights[columns].sum())) or 1.0
    formulation = formulate_core(point, columns, weights / unit, (incumbent - floor) / unit)
    values, proven = solve_program(formulation.program, max(seconds, 0.01))
    selection = None if values is None else formulation.selection(values, solve_program)
    bound = min(max(lower, floor + unit * proven / STAKE), incumbent)
    return CoreResult(selection=selection, bound=bound)


def _solver(backend: Backend) -> ProgramSolver:
    """Imported when needed: each takes a good part of a second, and easy problems need none."""
    if backend == "highs":
        from puzzle_search.solve.search.exact.highs import solve_program
    elif backend == "cp-sat":
        from puzzle_search.solve.search.exact.cpsat import solve_program
    else:
        from puzzle_search.solve.search.exact.scip import solve_program
    return solve_program
