"""The executor interface, and the executor that runs jobs one after another in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, TypeVar

from puzzle_search.errors import PuzzleSearchError

Job = TypeVar("Job")
Result = TypeVar("Result")

MAX_RETRIES = 2


class LostJobError(PuzzleSearchError):
    """A job whose workers died every time that it was run."""


class Executor(Protocol):
    """Runs independent jobs.

    ``work`` is a function at the top of a module, jobs and results can be sent to another
    process, and a job gives the same results wherever and however often it runs: one whose
    worker died is run again.
    """

    def run(self, work: Callable[[Job], Iterator[Result]], jobs: Sequence[Job]) -> Iterator[Result]:
        """Yield every result of every job, each once; jobs may finish in any order.

        The results of one job come in its own order. An error in a job ends the run.

        Raises:
            LostJobError: the worker of one job died, and again each time that it was run again.
        """
        ...


class InProcess:
    """Runs jobs in order in this process; a job's results come as soon as it yields them."""

    def run(self, work: Callable[[Job], Iterator[Result]], jobs: Sequence[Job]) -> Iterator[Result]:
        """Yield every result of every job."""
        for job in jobs:
            yield from work(job)
