"""Quality of children against their parent, and throughput measured against predicted."""

from puzzle_search.evaluate.engine_bench import measure_gguf_files
from puzzle_search.evaluate.evaluation import Evaluation, evaluate_children
from puzzle_search.evaluate.figures import spread_remarks
from puzzle_search.evaluate.max_load import MaxLoad, measure_max_load
from puzzle_search.evaluate.quality import Quality, measure_quality
from puzzle_search.evaluate.served_model import ServedModel
from puzzle_search.evaluate.serving_bench import Benched, ServingBench, Sweep
from puzzle_search.evaluate.tasks import Tasks, TaskSettings
from puzzle_search.evaluate.throughput import (
    Throughput,
    measure_checkpoints,
    measure_throughput,
    open_engine,
)

__all__ = [
    "Benched",
    "Evaluation",
    "MaxLoad",
    "Quality",
    "ServedModel",
    "ServingBench",
    "Sweep",
    "TaskSettings",
    "Tasks",
    "Throughput",
    "evaluate_children",
    "measure_checkpoints",
    "measure_gguf_files",
    "measure_max_load",
    "measure_quality",
    "measure_throughput",
    "open_engine",
    "spread_remarks",
]
