"""Jobs, results and errors as bytes between the processes of one run.

Pickled, as every call between processes is. Such bytes come from this program's own workers alone;
they are never read from a file.
"""

from __future__ import annotations

import pickle  # nosec B403
import traceback
from collections.abc import Callable, Iterator
from typing import Any

from puzzle_search.executor.base import Job, Result


def packed(work: Callable[[Job], Iterator[Result]], job: Job) -> bytes:
    """A job as it is sent to a worker."""
    return pickle.dumps((work, job))


def run_packed(message: bytes) -> bytes:
    """Run a job in a worker: its results, or its error, as they are sent back."""
    try:
        work, job = pickle.loads(message)  # nosec B301
        return pickle.dumps((list(work(job)), None))
    except Exception as error:  # whatever it is, it is raised again where the job came from
        error.add_note(f"in a worker:\n{traceback.format_exc()}")
        return pickle.dumps(([], error))


def unpacked(message: bytes) -> list[Any]:
    """The results that a worker sent back.

    Raises:
        Exception: the error that ended the job.
    """
    results, error = pickle.loads(message)  # nosec B301
    if error is not None:
        raise error
    return list(results)
