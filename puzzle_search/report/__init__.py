"""What a person reads: predicted against measured, as a table, Markdown and JSON."""

from puzzle_search.report.comparison import Comparison, ComparisonRow, write_comparison

__all__ = ["Comparison", "ComparisonRow", "write_comparison"]
