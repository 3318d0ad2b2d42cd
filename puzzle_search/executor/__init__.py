"""Where independent jobs run: in this process, in local processes, or on a cluster."""

from puzzle_search.executor.base import Executor, InProcess, LostJobError
from puzzle_search.executor.choose import open_executor
from puzzle_search.executor.cluster import RayExecutor
from puzzle_search.executor.local import LocalProcesses

__all__ = [
    "Executor",
    "InProcess",
    "LocalProcesses",
    "LostJobError",
    "RayExecutor",
    "open_executor",
]
