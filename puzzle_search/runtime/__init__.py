"""A parent or child at speed: fused subblocks, FP8, slots of KV cache, captured decode steps."""

from puzzle_search.runtime.decoder import ServingDecoder
from puzzle_search.runtime.engine import Engine
from puzzle_search.runtime.freed_memory import keep_freed_memory
from puzzle_search.runtime.linear import calibrating
from puzzle_search.runtime.precision import Precision, precision_on
from puzzle_search.runtime.scheduler import Request, Scheduler, ServedRequest
from puzzle_search.runtime.subblocks import ServingSubblock, make_serving_subblock

__all__ = [
    "Engine",
    "Precision",
    "Request",
    "Scheduler",
    "ServedRequest",
    "ServingDecoder",
    "ServingSubblock",
    "calibrating",
    "keep_freed_memory",
    "make_serving_subblock",
    "precision_on",
]
