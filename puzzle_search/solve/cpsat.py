"""The exact step in integers: CP-SAT.

Usage is rounded up and limits down, so that an integer answer keeps the real limits; damage is
scaled by the distance between bound and incumbent, so that scores of any magnitude keep the same
answer.
"""

from __future__ import annotations

import math
import os

import numpy as np
from ortools.sat.python import cp_model

from puzzle_search.solve.exact import CoreResult
from puzzle_search.solve.problem import PointProblem

# Rounding stays below one part in 10^8 of a limit, and sums over hundreds of layers far inside
# the 53 bits that CP-SAT's own relaxation keeps exact.
_UNITS = 10**10


def solve_core(
    point: PointProblem, kept: np.ndarray, *, lower: float, incumbent: float, seconds: float
) -> CoreResult:
    """Search the kept choices for less damage than ``incumbent``; see ``exact.solve_core``."""
    base = np.where(kept, point.damage, np.inf).min(axis=1)
    above = point.damage - base[:, None]
    widest = float(np.where(kept, above, 0.0).max(axis=1).sum())
    reach = min(incumbent - float(base.sum()), widest)
    scale = _UNITS / reach if reach > 0 else 1.0
    layers, columns = np.nonzero(kept)
    if len(np.unique(layers)) < len(kept):
        return CoreResult(choice=None, bound=incumbent, finished=True)
    model = cp_model.CpModel()
    variables = [model.new_bool_var("") for _ in columns]
    for layer in range(len(kept)):
        model.add_exactly_one(variables[i] for i in np.flatnonzero(layers == layer))
    for usage, limit in zip(point.usage, point.limits, strict=True):
        amounts = [math.ceil(_UNITS * float(usage[column])) for column in columns]
        capacity = math.floor(_UNITS * float(limit))
        model.add(cp_model.LinearExpr.weighted_sum(variables, amounts) <= capacity)
    weights = [round(scale * float(weight)) for weight in above[layers, columns]]
    objective = cp_model.LinearExpr.weighted_sum(variables, weights)
    if math.isfinite(incumbent):
        model.add(objective < math.ceil(scale * (incumbent - float(base.sum()))))
    model.minimize(objective)

    solver = cp_model.CpSolver()
    solver.parameters.max_time_in_seconds = max(seconds, 0.01)
    solver.parameters.num_workers = os.cpu_count() or 1
    solver.parameters.linearization_level = 2
    status = solver.solve(model)
    finished = status in (cp_model.OPTIMAL, cp_model.INFEASIBLE)
    if status not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        return CoreResult(choice=None, bound=incumbent if finished else lower, finished=finished)
    taken = np.array([bool(solver.boolean_value(variable)) for variable in variables])
    # Weights were rounded to the nearest unit: a proof holds up to one unit a layer.
    proven = float(base.sum()) + (solver.best_objective_bound - len(kept)) / scale
    return CoreResult(choice=columns[taken], bound=max(lower, proven), finished=finished)
