"""Pick a variant per layer: least damage within the limits, proven. No torch."""

from puzzle_search.solve.answers.solver import solve
from puzzle_search.solve.problem.builder import formulate
from puzzle_search.solve.problem.limits import ChildLimits, Limits
from puzzle_search.solve.problem.problem import Problem, Workload
from puzzle_search.solve.problem.score_table import ScoreRow, ScoreTable
from puzzle_search.solve.search.solution import Solution

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
