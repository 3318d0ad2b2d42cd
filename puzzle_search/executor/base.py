"""The executor interface, and the executor that runs jobs one after another in this process."""

from __future__ import annotations

import pickle
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, TypeVar

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


def packed(work: Callable[[Job], Iterator[Result]], job: Job) -> bytes:
    """A job as it is sent to a worker.

    Pickled, as every call between processes is; such bytes are never written or read from files.
    """
    return pickle.dumps((work, job))


def run_packed(message: bytes) -> bytes:
    """Run a job in a worker: its results, or its error, as they are sent back."""
    try:
        work, job = pickle.loads(message)
        return pickle.dumps((list(work(job)), None))
    except Exception as error:  # whatever it is, it is raised again where the job came from
        error.add_note(f"in a worker:\n{traceback.format_exc()}")
        return pickle.dumps(([], error))


def unpacked(message: bytes) -> list[Any]:
    """The results that a worker sent back.

    Raises:
        Exception: the error that ended the job.
    """
    results, error = pickle.loads(message)
    if error is not None:
        raise error
    return list(results)
