"""SCIP, through OR-Tools' linear solver wrapper, which the relaxation has loaded already."""

from __future__ import annotations

import math

import numpy as np
from ortools.linear_solver import pywraplp

from puzzle_search.solve.problem.items import Floats
from puzzle_search.solve.search.exact.program import GAP, STAKE, TOLERANCE, Program

# The incumbent is good, the program small and tight: on the shipped example plain branching is two
# to seven times faster than with cuts and the heuristics that solve programs themselves.
_HEURISTICS = ("alns", "rens", "rins", "crossover", "feaspump")
_PARAMETERS = f"""
numerics/feastol = {TOLERANCE}
numerics/dualfeastol = 1e-7
limits/gap = {GAP}
limits/absgap = {GAP * STAKE}
separating/maxrounds = 0
separating/maxroundsroot = 0
""" + "".join(f"heuristics/{name}/freq = -1\n" for name in _HEURISTICS)


def solve_program(program: Program, seconds: float) -> tuple[Floats | None, float]:
    """Values of the variables in the best answer found, if any, and a lower bound."""
    solver = pywraplp.Solver.CreateSolver("SCIP")
    variables = [
        solver.Var(0.0, most, whole, "")
        for most, whole in zip(program.most, program.whole, strict=True)
    ]
    for members, coefficients, low, high in program.rows:
        row = solver.Constraint(low, high)
        for member, coefficient in zip(members, coefficients, strict=True):
            row.SetCoefficient(variables[member], coefficient)
    objective = solver.Objective()
    for variable, coefficient in zip(variables, program.objective, strict=True):
        objective.SetCoefficient(variable, coefficient)
    objective.SetMinimization()
    solver.SetTimeLimit(max(1, int(1000 * seconds)))
    solver.SetSolverSpecificParametersAsString(_PARAMETERS)
    status = solver.Solve()
    if status == pywraplp.Solver.INFEASIBLE:
        return None, math.inf
    values = None
    if status in (pywraplp.Solver.OPTIMAL, pywraplp.Solver.FEASIBLE):
        values = np.array([variable.solution_value() for variable in variables])
    return values, objective.BestBound()
