"""Quality of children against their parent, and throughput measured against predicted."""

from puzzle_search.evaluate.evaluation import Evaluation, evaluate_children
from puzzle_search.evaluate.quality import Quality, measure_quality
from puzzle_search.evaluate.tasks import Tasks, TaskSettings
from puzzle_search.evaluate.throughput import Throughput, measure_throughput

__all__ = [
    "Evaluation",
    "Quality",
    "TaskSettings",
    "Tasks",
    "Throughput",
    "evaluate_children",
    "measure_quality",
    "measure_throughput",
]
