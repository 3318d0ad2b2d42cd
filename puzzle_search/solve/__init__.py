"""Pick a variant per layer: least damage within the limits, proven. No torch."""

from puzzle_search.solve.problem import Limits, Problem
from puzzle_search.solve.score_table import ScoreRow, ScoreTable
from puzzle_search.solve.search import Solution, solve

__all__ = ["Limits", "Problem", "ScoreRow", "ScoreTable", "Solution", "solve"]
