"""Jobs on a Ray cluster; Ray runs one again whose worker or node died."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from puzzle_search.errors import InputError
from puzzle_search.executor.base import MAX_RETRIES, Job, LostJobError, Result
from puzzle_search.executor.messages import packed, run_packed, unpacked
from puzzle_search.packages import installed

_CONNECT_SECONDS = 10


class RayExecutor:
    """Runs jobs as Ray tasks of one processor each; a job's results come when it has ended.

    Every node has this package, and sees the paths that jobs name: parent, library and data on a
    shared file system. Results come back through Ray, so that this process alone writes the
    journal. A job counts with one thread, or as many as ``OMP_NUM_THREADS`` says here.

    Args:
        address: of the cluster, ``host:port``; ``auto`` finds the one that this machine is in.
        gpus_per_job: GPUs that a job has for itself; without any, Ray hides them from it.

    Raises:
        MissingDependencyError: Ray is not installed.
    """

    def __init__(self, address: str = "auto", *, gpus_per_job: int = 0) -> None:
        self._ray = _import_ray()
        self._address = address
        self._gpus_per_job = gpus_per_job

    def run(self, work: Callable[[Job], Iterator[Result]], jobs: Sequence[Job]) -> Iterator[Result]:
        """Yield every result of every job, job by job as they end.

        Raises:
            InputError: there is no cluster at the address.
            LostJobError: the worker of one job died every time.
        """
        ray = self._ray
        with self._connection():
            task = ray.remote(run_packed).options(
                num_cpus=1,
                num_gpus=self._gpus_per_job,
                max_retries=MAX_RETRIES,
                runtime_env={"env_vars": {"OMP_NUM_THREADS": os.getenv("OMP_NUM_THREADS", "1")}},
            )
            pending = [task.remote(packed(work, job)) for job in jobs]
            try:
                while pending:
                    (ended,), pending = ray.wait(pending)
                    yield from unpacked(self._fetched(ended))
            finally:
                for unfinished in pending:
                    ray.cancel(unfinished, force=True)

    def _connection(self) -> contextlib.AbstractContextManager[Any]:
        if self._ray.is_initialized():  # by the program that this one is part of
            return contextlib.nullcontext()
        try:
            _check_answers(self._address)
            connection: contextlib.AbstractContextManager[Any] = self._ray.init(
                address=self._address, log_to_driver=False
            )
        except OSError as error:
            raise InputError(
                f"no Ray cluster answers at {self._address!r}: {error}",
                remedy="start one ('ray start --head') and give its host:port with --address, "
                "or leave out --executor ray",
            ) from error
        return connection

    def _fetched(self, ended: Any) -> bytes:
        try:
            message: bytes = self._ray.get(ended)
        except self._ray.exceptions.RayError as error:
            raise LostJobError(
                f"a job was lost with its worker or node {MAX_RETRIES + 1} times: {error}",
                remedy="see that the nodes have the memory for it. "
                "The same command goes on from the results so far",
            ) from error
        return message


def _check_answers(address: str) -> None:
    """Ray itself would wait for minutes on an address where nothing listens."""
    if address == "auto":
        return
    host, _, port = address.rpartition(":")
    if not port.isdecimal():
        raise InputError(f"--address {address!r} is not host:port", remedy="write 10.0.0.1:6379")
    socket.create_connection((host, int(port)), timeout=_CONNECT_SECONDS).close()


def _import_ray() -> Any:
    with installed():
        import ray
    return ray
