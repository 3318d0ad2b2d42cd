"""A worker process that serves one model: started, asked, and ended, with its failures told."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from puzzle_search.engines import InstalledEngine
from puzzle_search.errors import InputError, MissingDependencyError

_LOG_LINES = 5


def worker_command(engine: InstalledEngine, python: str | None = None) -> list[str]:
    """The command of a worker in the environment of a Python interpreter that has the engine."""
    return [python or sys.executable, str(engine.worker)]


@dataclass(frozen=True, kw_only=True)
class Request:
    """A batch of prompts that an engine answers to a fixed length."""

    batch: int
    input_len: int
    output_len: int

    @property
    def length(self) -> int:
        """Tokens of each sequence at its end."""
        return self.input_len + self.output_len


class OutOfMemoryError(Exception):
    """The worker had no memory for what was asked; it is gone."""


class Worker:
    """One worker process, a context manager.

    Args:
        engine: what it runs.
        command: starts a worker when the model and the settings are appended to it.
        model: the folder or file to serve.
        log: where what the engine prints is written.
        settings: what the worker is told, see the engine's ``worker.py``.
        start_seconds: time until it must be ready.
        answer_seconds: time for each answer.

    Attributes:
        identity: as the worker says it: ``engine`` with its version, ``device`` with its software,
            ``kv_tokens`` of the KV cache, and ``kv_block_tokens``, which a sequence takes at once.

    Raises:
        OutOfMemoryError: the model does not fit.
        MissingDependencyError: the worker's interpreter lacks the engine.
        InputError: the worker ended, hung, or answered what is no answer.
    """

    def __init__(
        self,
        engine: InstalledEngine,
        command: Sequence[str],
        model: Path,
        settings: dict[str, Any],
        *,
        log: Path,
        start_seconds: float,
        answer_seconds: float,
    ) -> None:
        self._engine = engine
        self._answer_seconds = answer_seconds
        self._log = log
        arguments = [*command, str(model), json.dumps(settings)]
        with log.open("w", encoding="utf-8") as errors:
            try:
                self._process = subprocess.Popen(
                    arguments,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=errors,
                    text=True,
                    start_new_session=True,
                )
            except OSError as error:
                raise InputError(
                    f"the {engine.name} worker {command[0]!r} cannot be started: {error}",
                    remedy=f"name the Python interpreter of an environment with {engine.name}",
                ) from error
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._requests = self._process.stdin
        self._lines: queue.Queue[str] = queue.Queue()
        threading.Thread(
            target=_pass_on, args=(self._process.stdout, self._lines), daemon=True
        ).start()
        with contextlib.ExitStack() as unless_ready:
            unless_ready.callback(self.close)  # the process holds the GPU
            self.identity = self._ready(self._answer(start_seconds))
            unless_ready.pop_all()

    def __enter__(self) -> Worker:
        """The worker itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End the process."""
        self.close()

    def run(self, request: Request) -> list[tuple[float, int]]:
        """Seconds since the start, and sequences that got a token, of every engine step.

        Raises:
            OutOfMemoryError: there was no memory for it; the worker is gone.
            InputError: the worker ended, hung, or answered what is no answer.
        """
        self._ask(asdict(request))
        answer = self._answer(self._answer_seconds)
        steps = answer.get("steps")
        if not isinstance(steps, list) or not all(map(_is_step, steps)) or not steps:
            raise self._nonsense(json.dumps(answer))
        return [(float(seconds), sequences) for seconds, sequences in steps]

    def write(self, path: str, body: dict[str, Any]) -> Iterator[str]:
        """Pieces of text that the engine's server answers a request of its own with.

        Raises:
            InputError: it refuses, or the worker ended, hung, or answered what is no answer.
        """
        self._ask({"path": path, "body": body})
        while "end" not in (answer := self._answer(self._answer_seconds)):
            if not isinstance(answer.get("text"), str):
                raise self._nonsense(json.dumps(answer))
            yield answer["text"]
        if answer["end"] is not None:
            raise InputError(
                f"{self._engine.name} refuses: {answer['end']}",
                remedy="ask for what this model can do",
            )

    @property
    def resident_bytes(self) -> int:
        """The most memory that the process held so far, its weights and cache among it."""
        status = Path(f"/proc/{self._process.pid}/status").read_text(encoding="utf-8")
        kib = next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))
        return int(kib) << 10

    def close(self) -> None:
        """End the process and whatever it started."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        with contextlib.suppress(BrokenPipeError):  # of a request that was not taken
            self._requests.close()

    def _ask(self, request: dict[str, Any]) -> None:
        try:
            self._requests.write(json.dumps(request) + "\n")
            self._requests.flush()
        except BrokenPipeError as error:
            raise self._ended() from error

    def _answer(self, seconds: float) -> dict[str, Any]:
        try:
            line = self._lines.get(timeout=seconds)
        except queue.Empty as error:
            raise InputError(
                f"the {self._engine.name} worker has not answered for {seconds:g} s; {self._log} "
                f"ends:\n{self._tail()}",
                remedy="look into that log; what was measured is kept, run the command again",
            ) from error
        if not line:
            raise self._ended()
        try:
            answer = json.loads(line)
        except json.JSONDecodeError as error:
            raise self._nonsense(line) from error
        if not isinstance(answer, dict):
            raise self._nonsense(line)
        failed = answer.get("failed")
        if failed == "memory":
            raise OutOfMemoryError(str(answer.get("message")))
        if failed == "missing":
            raise MissingDependencyError(
                f"the worker has no {self._engine.name}: {answer.get('message')}",
                remedy=f"pip install '{self._engine.package}' into an environment of its own, and "
                "name its Python interpreter with --engine-python",
            )
        return answer

    def _ready(self, answer: dict[str, Any]) -> dict[str, Any]:
        identity = answer.get("ready")
        if not isinstance(identity, dict) or not identity.keys() == _IDENTITY:
            raise self._nonsense(json.dumps(answer))
        return identity

    def _ended(self) -> InputError:
        code = self._process.wait()
        return InputError(
            f"the {self._engine.name} worker ended with exit code {code}; {self._log} ends:\n"
            f"{self._tail()}",
            remedy="mend what that log says; what was measured is kept, run the command again",
        )

    def _nonsense(self, line: str) -> InputError:
        return InputError(
            f"the {self._engine.name} worker answered {line.strip():.200}",
            remedy="use a worker command that runs this version's worker.py",
        )

    def _tail(self) -> str:
        lines = self._log.read_text(encoding="utf-8", errors="replace").splitlines()
        return "\n".join(lines[-_LOG_LINES:])


_IDENTITY = {"engine", "device", "kv_tokens", "kv_block_tokens"}


def _is_step(step: object) -> bool:
    return (
        isinstance(step, list)
        and len(step) == 2
        and type(step[0]) in (int, float)
        and type(step[1]) is int
    )


def _pass_on(stream: IO[str], lines: queue.Queue[str]) -> None:
    """Lines of a stream into a queue, and an empty one at its end."""
    for line in stream:
        lines.put(line)
    lines.put("")
