"""Quality of a child against its parent, and throughput measured against predicted."""

from puzzle_search.evaluate.quality import Quality, measure_quality
from puzzle_search.evaluate.throughput import Throughput, measure_throughput

__all__ = ["Quality", "Throughput", "measure_quality", "measure_throughput"]
