"""Replace-1-block scores."""

from puzzle_search.score.replace import score_replacements

__all__ = ["score_replacements"]
