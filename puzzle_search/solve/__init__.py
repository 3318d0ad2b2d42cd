"""Pick a variant per layer: least damage within the limits, proven. No torch."""

from puzzle_search.solve.formulate import formulate
from puzzle_search.solve.limits import ChildLimits, Limits
from puzzle_search.solve.problem import Problem, Workload
from puzzle_search.solve.score_table import ScoreRow, ScoreTable
from puzzle_search.solve.solution import Solution
from puzzle_search.solve.solver import solve

__all__ = [
    "ChildLimits",
    "Limits",
    "Problem",
    "ScoreRow",
    "ScoreTable",
    "Solution",
    "Workload",
    "formulate",
    "solve",
]
