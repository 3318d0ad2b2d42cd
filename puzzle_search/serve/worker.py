"""The thread that computes: it takes requests from the server's event loop and answers in turns."""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

import torch
from tokenizers import Tokenizer

from puzzle_search.errors import InputError
from puzzle_search.model import Sampling
from puzzle_search.runtime import Engine, Request, Scheduler
from puzzle_search.serve.metrics import Metrics
from puzzle_search.serve.text import TextStream


class BusyError(Exception):
    """As many requests wait as may."""


class WorkerDiedError(Exception):
    """The thread that computes has ended."""


@dataclass(frozen=True, kw_only=True)
class ClientRequest:
    """What a client asks of the model.

    Attributes:
        prompt: token ids.
        output_len: tokens to add at most.
        sampling: how they are drawn.
        stop: texts that end the output.
        ignore_end: go on behind the model's own end of text.
    """

    prompt: list[int]
    output_len: int
    sampling: Sampling
    stop: tuple[str, ...] = ()
    ignore_end: bool = False


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A part of an output.

    Attributes:
        text: that came with it.
        tokens: of the output so far.
        finish: why it ended (``stop``, ``length``), in the last piece.
    """

    text: str
    tokens: int
    finish: str | None = None


@dataclass(kw_only=True, eq=False)
class _Job:
    index: int
    asked: ClientRequest
    text: TextStream
    end_tokens: frozenset[int]
    loop: asyncio.AbstractEventLoop
    pieces: asyncio.Queue[tuple[_Job, Piece | None]]
    arrival_s: float = field(default_factory=time.perf_counter)
    token_s: list[float] = field(default_factory=list)
    fresh: str = ""
    tokens: int = 0
    finish: str | None = None

    def hear(self, token: int) -> None:
        if self.finish:  # by a stop string, of which the scheduler does not know
            return
        now = time.perf_counter()
        self.token_s = [*self.token_s[:1], now]
        self.tokens += 1
        if token in self.end_tokens:
            self.finish = "stop"
            return
        self.fresh += self.text.add(token)
        if self.text.stopped:
            self.finish = "stop"
        elif self.tokens == self.asked.output_len:
            self.finish = "length"

    def tell(self, piece: Piece | None) -> None:
        """Hand a piece to whoever waits for it, or that none will come."""
        self.loop.call_soon_threadsafe(self.pieces.put_nowait, (self, piece))

    def take(self) -> Piece:
        """What has come since the last turn."""
        if self.finish and not self.text.stopped:
            self.fresh += self.text.rest()
        piece = Piece(text=self.fresh, tokens=self.tokens, finish=self.finish)
        self.fresh = ""
        return piece


class Worker:
    """Serves an engine to coroutines.

    Args:
        engine: its slots are taken over.
        tokenizer: of the model.
        end_tokens: tokens that end a text.
        max_waiting: requests that may wait for a slot.
    """

    def __init__(
        self,
        engine: Engine,
        tokenizer: Tokenizer,
        *,
        end_tokens: frozenset[int],
        max_waiting: int,
    ) -> None:
        self.max_length = engine.max_length
        self._vocab_size = engine.decoder.config.vocab_size
        self._limit = engine.slots + max_waiting
        self._tokenizer = tokenizer
        self._end_tokens = end_tokens
        self._scheduler = Scheduler(engine)
        self.metrics = Metrics(
            running=lambda: self._scheduler.running, waiting=lambda: self._scheduler.waiting
        )
        # Jobs to begin, jobs that nobody waits for any more, and None to end.
        self._inbox: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._open: set[_Job] = set()  # of the event loop
        self._jobs: dict[_Job, Request] = {}  # of the thread
        self._thread = threading.Thread(target=self._run, name="worker", daemon=True)

    def start(self) -> None:
        """Begin to compute."""
        self._thread.start()

    def stop(self) -> None:
        """End; what is not served yet fails."""
        self._inbox.put(None)
        self._thread.join()

    @property
    def alive(self) -> bool:
        """Whether it computes."""
        return self._thread.is_alive()

    def check(self, asked: ClientRequest) -> None:
        """Check a request.

        Raises:
            InputError: it has no prompt, tokens that the model has not, or more than fit.
        """
        if not asked.prompt:
            raise InputError("the prompt is empty", remedy="give at least one token")
        if not 0 <= min(asked.prompt) <= max(asked.prompt) < self._vocab_size:
            raise InputError(
                f"the prompt holds token ids outside of 0 to {self._vocab_size - 1}",
                remedy="use the model's own tokenizer",
            )
        length = len(asked.prompt) + asked.output_len
        if asked.output_len < 1 or length > self.max_length:
            raise InputError(
                f"the prompt has {len(asked.prompt)} tokens, {asked.output_len} more are asked, "
                f"and the server's limit is {self.max_length} in all",
                remedy="shorten the prompt, or ask for fewer tokens",
            )

    async def stream(self, asked: Sequence[ClientRequest]) -> AsyncIterator[tuple[int, Piece]]:
        """The outputs in pieces, each with its number; given up where the caller gives up.

        Raises:
            InputError: as `check`.
            BusyError: more requests would wait than may.
            WorkerDiedError: the thread that computes has ended.
        """
        for one in asked:
            self.check(one)
        if not self.alive:
            raise WorkerDiedError
        if len(self._open) + len(asked) > self._limit:
            raise BusyError
        pieces: asyncio.Queue[tuple[_Job, Piece | None]] = asyncio.Queue()
        unfinished = {
            _Job(
                index=index,
                asked=one,
                text=TextStream(self._tokenizer, one.prompt, one.stop),
                end_tokens=frozenset() if one.ignore_end else self._end_tokens,
                loop=asyncio.get_running_loop(),
                pieces=pieces,
            )
            for index, one in enumerate(asked)
        }
        self._open |= unfinished
        for job in sorted(unfinished, key=lambda job: job.index):
            self._inbox.put(job)
        try:
            while unfinished:
                job, piece = await pieces.get()
                if piece is None:
                    raise WorkerDiedError
                if piece.finish is not None:
                    unfinished.discard(job)
                    self._open.discard(job)
                yield job.index, piece
        finally:
            self._open -= unfinished
            for job in unfinished:
                self._inbox.put(job)

    def _run(self) -> None:
        try:
            while self._take():
                self._scheduler.turn()
                self._tell()
        finally:
            while not self._inbox.empty():
                late = self._inbox.get()
                if late is not None and not late.finish:
                    self._begin(late)
            for job in list(self._jobs):
                self._end(job, "failed")
                job.tell(None)

    def _take(self) -> bool:
        """Take in what has arrived; wait for it where nothing is to be done."""
        while True:
            try:
                job = self._inbox.get(block=not self._scheduler.busy)
            except queue.Empty:
                return True
            if job is None:
                return False
            if job in self._jobs:
                self._scheduler.cancel(self._jobs[job])
                self._end(job, "cancelled")
            elif not job.finish:
                self._begin(job)

    def _begin(self, job: _Job) -> None:
        asked = job.asked
        request = Request(
            ids_L=torch.tensor(asked.prompt),
            output_len=asked.output_len,
            stop_tokens=job.end_tokens,
            sampling=asked.sampling,
            on_token=job.hear,
        )
        self._jobs[job] = request
        self._scheduler.submit(request)

    def _tell(self) -> None:
        """Hand on what came in this turn."""
        told = [job for job in self._jobs if job.tokens and (job.fresh or job.finish)]
        for job in told:
            piece = job.take()
            if job.finish:
                self._scheduler.cancel(self._jobs[job])  # where a stop string ended it
                self._end(job, job.finish)
            job.tell(piece)

    def _end(self, job: _Job, finish: str) -> None:
        job.finish = finish
        del self._jobs[job]
        self.metrics.ended(
            finish,
            prompt_tokens=len(job.asked.prompt),
            output_tokens=job.tokens,
            times_s=[job.arrival_s, job.token_s[0], job.token_s[-1]] if job.token_s else [],
        )
