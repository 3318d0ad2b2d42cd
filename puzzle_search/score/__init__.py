"""Replace-1-block scores, around the parent or around a child."""

from puzzle_search.score.around import begins_and_ends_with_blocks, replacements_around
from puzzle_search.score.metrics import DEFAULT_METRICS, METRICS, parse_metrics
from puzzle_search.score.replace import score_replacements
from puzzle_search.score.results import Scores

__all__ = [
    "DEFAULT_METRICS",
    "METRICS",
    "Scores",
    "begins_and_ends_with_blocks",
    "parse_metrics",
    "replacements_around",
    "score_replacements",
]
