"""HiGHS, through OR-Tools' MathOpt."""

from __future__ import annotations

import datetime
import math

import numpy as np
from ortools.math_opt.python import mathopt

from puzzle_search.solve.problem.items import Floats
from puzzle_search.solve.search.exact.program import GAP, STAKE, TOLERANCE, Program

_NOTHING_BELOW_THE_CUTOFF = (
    mathopt.TerminationReason.INFEASIBLE,
    mathopt.TerminationReason.INFEASIBLE_OR_UNBOUNDED,  # every variable has bounds
)


def solve_program(program: Program, seconds: float) -> tuple[Floats | None, float]:
    """Values of the variables in the best answer found, if any, and a lower bound."""
    model = mathopt.Model()
    variables = [
        model.add_variable(lb=0.0, ub=most, is_integer=whole)
        for most, whole in zip(program.most, program.whole, strict=True)
    ]
    for members, coefficients, low, high in program.rows:
        terms = [c * variables[v] for c, v in zip(coefficients, members, strict=True)]
        model.add_linear_constraint(lb=low, ub=high, expr=mathopt.fast_sum(terms))
    costs = zip(program.objective, variables, strict=True)
    model.minimize(mathopt.fast_sum([cost * variable for cost, variable in costs]))
    parameters = mathopt.SolveParameters(
        time_limit=datetime.timedelta(seconds=seconds),
        relative_gap_tolerance=GAP,
        absolute_gap_tolerance=GAP * STAKE,
    )
    for name in ("primal", "dual"):
        parameters.highs.double_options[f"{name}_feasibility_tolerance"] = TOLERANCE
    result = mathopt.solve(model, mathopt.SolverType.HIGHS, params=parameters)
    if result.termination.reason in _NOTHING_BELOW_THE_CUTOFF:
        return None, math.inf
    values = None
    if result.has_primal_feasible_solution():
        values = np.array(result.variable_values(variables))
    return values, result.termination.objective_bounds.dual_bound
