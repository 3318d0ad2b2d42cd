"""The exact step as a mixed-integer program: HiGHS or SCIP through OR-Tools' MathOpt.

Costs do not depend on the layer, so time and memory of an architecture follow from how often each
attention and each FFN variant occurs. The program says so: limits bind integer counts, and once
these are branched on, what is left is a transportation problem, whose relaxation is nearly
integral. On score tables whose layers resemble each other this closes in under a second what the
plain knapsack formulation leaves open for minutes (bench/solver.py).
"""

from __future__ import annotations

import datetime
import math

import numpy as np
from ortools.math_opt.python import mathopt

from puzzle_search.solve.exact import Core
from puzzle_search.solve.problem import Choice, PointProblem

_SOLVERS = {"highs": mathopt.SolverType.HIGHS, "scip": mathopt.SolverType.GSCIP}
_GAP = 1e-10
# The solvers let rows and reduced costs pass by 1e-6 and 1e-7 unless told otherwise.
_TOLERANCE = 1e-9
# What is at stake, in the objective: with reduced costs exact to 1e-9, proofs are to 1e-12.
_STAKE = 1e3


def solve(
    point: PointProblem, core: Core, *, seconds: float, backend: str
) -> tuple[Choice | None, float]:
    """The best choice found, if any, and a lower bound on weights below the cutoff."""
    model = mathopt.Model()
    variables = [model.add_binary_variable() for _ in core.columns]
    for layer in range(core.num_layers):
        mine = [variables[i] for i in np.flatnonzero(core.layers == layer)]
        model.add_linear_constraint(mathopt.fast_sum(mine) == 1)
    used: list[list[mathopt.LinearTypes]] = [[] for _ in point.limits]
    for which, usage in (
        (point.attention_of, point.attention_usage),
        (point.ffn_of, point.ffn_usage),
    ):
        for variant in np.unique(which[core.columns]):
            count = model.add_integer_variable(lb=0, ub=core.num_layers)
            mine = [variables[i] for i in np.flatnonzero(which[core.columns] == variant)]
            model.add_linear_constraint(mathopt.fast_sum(mine) == count)
            for resource, terms in enumerate(used):
                terms.append(float(usage[resource, variant]) * count)
    for terms, limit in zip(used, point.limits, strict=True):
        model.add_linear_constraint(mathopt.fast_sum(terms) <= float(limit))
    weights = _STAKE * core.weights
    objective = mathopt.fast_sum([float(w) * v for w, v in zip(weights, variables, strict=True)])
    if math.isfinite(core.cutoff):
        model.add_linear_constraint(objective <= _STAKE * core.cutoff)
    model.minimize(objective)
    result = mathopt.solve(model, _SOLVERS[backend], params=_parameters(seconds, backend))
    reason = result.termination.reason
    # Unbounded it cannot be: every variable has bounds.
    if reason in (
        mathopt.TerminationReason.INFEASIBLE,
        mathopt.TerminationReason.INFEASIBLE_OR_UNBOUNDED,
    ):
        return None, math.inf
    choice = None
    if result.has_primal_feasible_solution():
        taken = np.array(result.variable_values(variables)) > 0.5
        choice = core.columns[taken]
    dual = result.termination.objective_bounds.dual_bound
    return choice, dual / _STAKE if math.isfinite(dual) else -math.inf


def _parameters(seconds: float, backend: str) -> mathopt.SolveParameters:
    parameters = mathopt.SolveParameters(
        time_limit=datetime.timedelta(seconds=max(seconds, 0.01)),
        relative_gap_tolerance=_GAP,
        absolute_gap_tolerance=_GAP * _STAKE,
    )
    if backend == "scip":
        # The incumbent is good, the program small and tight: on the shipped example plain
        # branching is two to seven times faster than with cuts, presolve and heuristics.
        parameters.cuts = parameters.heuristics = parameters.presolve = mathopt.Emphasis.OFF
    for name in ("feastol", "dualfeastol"):
        parameters.gscip.real_params[f"numerics/{name}"] = _TOLERANCE
    for name in ("primal", "dual", "mip"):
        parameters.highs.double_options[f"{name}_feasibility_tolerance"] = _TOLERANCE
    return parameters
