"""The exact step in integers: CP-SAT.

Usage is rounded down and limits up, so that no choice within the real limits is lost; who asks
checks the answer against these. Damage is rounded to parts of what is at stake.
"""

from __future__ import annotations

import math
import os

import numpy as np
from ortools.sat.python import cp_model

from puzzle_search.solve.exact import Core
from puzzle_search.solve.problem import Choice, PointProblem

# Sums over a hundred layers stay inside the 53 bits that CP-SAT's own relaxation keeps exact, and
# their rounding below one part in 10^10.
_UNITS = 10**12


def solve(point: PointProblem, core: Core, *, seconds: float) -> tuple[Choice | None, float]:
    """The best choice found, if any, and a lower bound on weights below the cutoff."""
    # Weights were rounded to the nearest unit: a proof holds up to one unit a layer.
    rounding = core.num_layers / _UNITS
    model = cp_model.CpModel()
    variables = [model.new_bool_var("") for _ in core.columns]
    for layer in range(core.num_layers):
        model.add_exactly_one(variables[i] for i in np.flatnonzero(core.layers == layer))
    for usage, limit in zip(point.usage, point.limits, strict=True):
        amounts = [math.floor(_UNITS * float(usage[column])) for column in core.columns]
        capacity = math.ceil(_UNITS * float(limit))
        model.add(cp_model.LinearExpr.weighted_sum(variables, amounts) <= capacity)
    weights = [round(_UNITS * float(weight)) for weight in core.weights]
    objective = cp_model.LinearExpr.weighted_sum(variables, weights)
    if math.isfinite(core.cutoff):
        model.add(objective <= math.ceil(_UNITS * core.cutoff))
    model.minimize(objective)

    solver = cp_model.CpSolver()
    solver.parameters.max_time_in_seconds = max(seconds, 0.01)
    solver.parameters.num_workers = os.cpu_count() or 1
    solver.parameters.linearization_level = 2
    status = solver.solve(model)
    if status == cp_model.INFEASIBLE:
        return None, core.cutoff - rounding
    if status not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        return None, -math.inf
    taken = np.array([bool(solver.boolean_value(variable)) for variable in variables])
    return core.columns[taken], solver.best_objective_bound / _UNITS - rounding
