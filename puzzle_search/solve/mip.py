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

from puzzle_search.solve.exact import CoreResult
from puzzle_search.solve.problem import PointProblem

_SOLVERS = {"highs": mathopt.SolverType.HIGHS, "scip": mathopt.SolverType.GSCIP}
_RELATIVE_GAP = 1e-10


def solve_core(
    point: PointProblem,
    kept: np.ndarray,
    *,
    lower: float,
    incumbent: float,
    seconds: float,
    backend: str,
) -> CoreResult:
    """Search the kept choices for less damage than ``incumbent``; see ``exact.solve_core``."""
    model = mathopt.Model()
    layers, columns = np.nonzero(kept)
    if len(np.unique(layers)) < len(kept):
        return CoreResult(choice=None, bound=incumbent, finished=True)
    variables = [model.add_binary_variable() for _ in columns]
    for layer in range(len(kept)):
        mine = [variables[i] for i in np.flatnonzero(layers == layer)]
        model.add_linear_constraint(mathopt.fast_sum(mine) == 1)
    used: list[list[mathopt.LinearTypes]] = [[] for _ in point.limits]
    for which, usage in (
        (point.attention_of, point.attention_usage),
        (point.ffn_of, point.ffn_usage),
    ):
        for variant in np.unique(which[columns]):
            count = model.add_integer_variable(lb=0, ub=len(kept))
            mine = [variables[i] for i in np.flatnonzero(which[columns] == variant)]
            model.add_linear_constraint(mathopt.fast_sum(mine) == count)
            for resource, terms in enumerate(used):
                terms.append(float(usage[resource, variant]) * count)
    for terms, limit in zip(used, point.limits, strict=True):
        model.add_linear_constraint(mathopt.fast_sum(terms) <= float(limit))
    base = np.where(kept, point.damage, np.inf).min(axis=1)
    above = point.damage - base[:, None]
    # Damage is scaled to about 1, so that the solver's tolerances mean the same for any metric.
    reach = float(np.where(kept, above, 0.0).max(axis=1).sum())
    scale = 1.0 / reach if reach > 0 else 1.0
    weights = scale * above[layers, columns]
    objective = mathopt.fast_sum([float(w) * v for w, v in zip(weights, variables, strict=True)])
    if math.isfinite(incumbent):
        model.add_linear_constraint(objective <= scale * (incumbent - float(base.sum())))
    model.minimize(objective)
    result = mathopt.solve(
        model,
        _SOLVERS[backend],
        params=mathopt.SolveParameters(
            time_limit=datetime.timedelta(seconds=max(seconds, 0.01)),
            relative_gap_tolerance=_RELATIVE_GAP,
            absolute_gap_tolerance=_RELATIVE_GAP,
        ),
    )
    reason = result.termination.reason
    if reason == mathopt.TerminationReason.INFEASIBLE:
        return CoreResult(choice=None, bound=incumbent, finished=True)
    finished = reason == mathopt.TerminationReason.OPTIMAL
    choice = None
    if result.has_primal_feasible_solution():
        values = np.array(result.variable_values(variables))
        choice = columns[values > 0.5]
    dual = result.termination.objective_bounds.dual_bound
    proven = float(base.sum()) + dual / scale if math.isfinite(dual) else lower
    return CoreResult(choice=choice, bound=max(lower, proven), finished=finished)
