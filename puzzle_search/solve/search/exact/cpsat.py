"""CP-SAT, which knows integers only.

Usage is rounded down and limits up, so that nothing within the real limits is lost; who asks
checks the answer against these. The objective is rounded to small parts of what is at stake.
"""

from __future__ import annotations

import math
import os

import numpy as np
from ortools.sat.python import cp_model

from puzzle_search.solve.problem.items import Floats
from puzzle_search.solve.search.exact.program import STAKE, Program

# Sums over a hundred layers stay inside the 53 bits that CP-SAT's own relaxation keeps exact, and
# their rounding below one part in 10^10.
_UNITS = 10**12


def solve_program(program: Program, seconds: float) -> tuple[Floats | None, float]:
    """Values of the variables in the best answer found, if any, and a lower bound.

    All variables are taken as integer, as an optimum of the program always is.
    """
    model = cp_model.CpModel()
    variables = [model.new_int_var(0, int(most), "") for most in program.most]
    for members, coefficients, low, high in program.rows:
        mine = [variables[member] for member in members]
        if low == high and all(c.is_integer() for c in coefficients):
            whole = [int(c) for c in coefficients]
            model.add(cp_model.LinearExpr.weighted_sum(mine, whole) == int(low))
        else:
            down = [math.floor(_UNITS * c / _scale(high)) for c in coefficients]
            capacity = math.ceil(_UNITS * high / _scale(high))
            most = sum(max(0, d) * program.most[v] for d, v in zip(down, members, strict=True))
            if capacity < most:
                model.add(cp_model.LinearExpr.weighted_sum(mine, down) <= capacity)
    costs = [round(_UNITS * cost / STAKE) for cost in program.objective]
    model.minimize(cp_model.LinearExpr.weighted_sum(variables, costs))
    # Costs were rounded to the nearest unit: a proof holds up to half a unit for each taken.
    rounding = sum(program.most) / _UNITS * STAKE

    solver = cp_model.CpSolver()
    solver.parameters.max_time_in_seconds = seconds
    solver.parameters.num_workers = os.cpu_count() or 1
    solver.parameters.linearization_level = 2
    status = solver.solve(model)
    if status == cp_model.INFEASIBLE:
        return None, math.inf
    if status not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        return None, -math.inf
    values = np.array([float(solver.value(variable)) for variable in variables])
    return values, solver.best_objective_bound * STAKE / _UNITS - rounding


def _scale(high: float) -> float:
    """Rows about the objective are in its unit, all others in that of their limit."""
    return STAKE if abs(high) > 2 else 1.0
