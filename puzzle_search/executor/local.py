"""Jobs in processes of this machine; a job whose process died is run again."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any, cast

from puzzle_search.executor.base import MAX_RETRIES, Job, LostJobError, Result
from puzzle_search.executor.messages import packed, run_packed, unpacked

_SPAWN = multiprocessing.get_context("spawn")


class LocalProcesses:
    """Runs jobs in fresh processes of this machine; a job's results come when it has ended.

    The processors are shared out among the workers: each counts with so many threads that
    together they fill the machine. Sums depend on the number of threads in their last bits;
    where ``OMP_NUM_THREADS`` is set, it decides instead, here as in every other executor.

    Args:
        workers: processes. Each holds all that a job needs; memory may allow fewer than
            there are processors.
    """

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._threads = max(1, (os.cpu_count() or 1) // workers)

    def run(self, work: Callable[[Job], Iterator[Result]], jobs: Sequence[Job]) -> Iterator[Result]:
        """Yield every result of every job, job by job as they end."""
        waiting = deque(range(len(jobs)))
        deaths: Counter[int] = Counter()
        idle = [_Worker(self._threads) for _ in range(min(self._workers, len(jobs)))]
        busy: dict[Connection, tuple[_Worker, int]] = {}
        finished: list[Result] = []
        try:
            while True:
                while waiting and idle:
                    worker, index = idle.pop(), waiting.popleft()
                    busy[worker.connection] = worker, index
                    worker.begin(packed(work, jobs[index]))
                yield from finished
                if not busy:
                    return
                connection = cast(Connection, wait(busy)[0])
                worker, index = busy[connection]
                answer = worker.answer()
                del busy[connection]
                if answer is not None:
                    idle.append(worker)
                    finished = unpacked(answer)
                    continue
                deaths[index] += 1
                _tell_death(index, len(jobs), deaths[index], worker.stop())
                waiting.appendleft(index)
                idle.append(_Worker(self._threads))
                finished = []
        finally:
            for worker in [*idle, *(worker for worker, _ in busy.values())]:
                worker.stop()


def _tell_death(index: int, jobs: int, deaths: int, exit_code: int) -> None:
    how = signal.Signals(-exit_code).name if exit_code < 0 else f"exit code {exit_code}"
    what = f"the worker of job {index + 1} of {jobs} died ({how})"
    if deaths > MAX_RETRIES:
        raise LostJobError(
            f"{what}, as on the {MAX_RETRIES} tries before",
            remedy="SIGKILL mostly means that memory ran out: ask for fewer --workers. "
            "The same command goes on from the results so far",
        )
    print(f"{what}; it is run again", file=sys.stderr, flush=True)


class _Worker:
    """A process that runs one job at a time, and its end of the line to this one."""

    def __init__(self, threads: int) -> None:
        self.connection, theirs = _SPAWN.Pipe()
        self._process = _SPAWN.Process(target=_serve, args=(theirs, threads), daemon=True)
        self._process.start()
        theirs.close()  # so that the death of the process ends the line

    def begin(self, message: bytes) -> None:
        """Send a job; if the process has died, ``answer`` will say so."""
        with contextlib.suppress(OSError):
            self.connection.send_bytes(message)

    def answer(self) -> bytes | None:
        """What the job gave; None if the process died."""
        try:
            return self.connection.recv_bytes()
        except (EOFError, OSError):
            return None

    def stop(self) -> int:
        """End the process, whatever it does; its exit code."""
        self._process.kill()
        self._process.join()
        self.connection.close()
        return cast(int, self._process.exitcode)


def _serve(connection: Connection, threads: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the driver, who stops this one
    threading.Thread(target=_end_with_driver, daemon=True).start()
    if "OMP_NUM_THREADS" not in os.environ:
        os.environ["OMP_NUM_THREADS"] = str(threads)  # torch reads it when it is imported
        torch: Any = sys.modules.get("torch")
        if torch is not None:  # the driver's main module has imported it
            torch.set_num_threads(threads)
    while True:
        try:
            message = connection.recv_bytes()
        except EOFError:
            return
        connection.send_bytes(run_packed(message))


def _end_with_driver() -> None:
    driver = multiprocessing.parent_process()
    assert driver is not None
    driver.join()
    os._exit(1)
