"""Where independent jobs run: in this process, in local processes, or on a cluster."""

from puzzle_search.executor.base import Executor, InProcess

__all__ = ["Executor", "InProcess"]
