"""Continuous batching: requests share the slots of an engine, and a free slot is filled at once."""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from puzzle_search.cost.chunks import sequences_per_chunk
from puzzle_search.errors import InputError
from puzzle_search.model import Sampler, Sampling
from puzzle_search.runtime.engine import Engine


@dataclass(frozen=True, kw_only=True, eq=False)
class Request:
    """A prompt and what to add to it.

    Attributes:
        ids_L: token ids of the prompt.
        output_len: tokens to add at most.
        stop_tokens: any of them ends the output, as its last token.
        sampling: greedy by default.
        on_token: is told each token in turn.
    """

    ids_L: torch.Tensor
    output_len: int
    stop_tokens: frozenset[int] = frozenset()
    sampling: Sampling | None = None
    on_token: Callable[[int], None] | None = None


@dataclass(frozen=True, kw_only=True)
class ServedRequest:
    """What became of a request; times are seconds of the scheduler's clock.

    Attributes:
        request: what was asked.
        tokens: the output.
        arrival_s: when it was submitted.
        first_token_s, last_token_s: when these tokens were on the host.
    """

    request: Request
    tokens: tuple[int, ...]
    arrival_s: float
    first_token_s: float
    last_token_s: float

    @property
    def ttft_ms(self) -> float:
        """From arrival to the first token."""
        return (self.first_token_s - self.arrival_s) * 1e3

    @property
    def tpot_ms(self) -> float:
        """Mean time of each later token; 0 where there is none."""
        return (self.last_token_s - self.first_token_s) * 1e3 / max(1, len(self.tokens) - 1)

    @property
    def latency_ms(self) -> float:
        """From arrival to the last token."""
        return (self.last_token_s - self.arrival_s) * 1e3


@dataclass(kw_only=True, eq=False)
class _Sequence:
    request: Request
    arrival_s: float
    first_token_s: float = 0.0
    tokens: list[int] = field(default_factory=list)

    @property
    def ended(self) -> bool:
        request = self.request
        return len(self.tokens) == request.output_len or self.tokens[-1] in request.stop_tokens


class Scheduler:
    """Serves requests in the order in which they came.

    Args:
        engine: its slots are taken over.
        clock: seconds now; read once tokens are on the host.
    """

    def __init__(self, engine: Engine, *, clock: Callable[[], float] = time.perf_counter) -> None:
        self._engine = engine
        self._clock = clock
        self._waiting: deque[_Sequence] = deque()
        self._running: dict[int, _Sequence] = {}
        self._free = list(range(engine.slots))
        engine.release(self._free)

    @property
    def busy(self) -> bool:
        """Whether a request is waiting or running."""
        return bool(self._waiting or self._running)

    @property
    def waiting(self) -> int:
        """How many requests wait for a slot."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """How many requests have a slot."""
        return len(self._running)

    def submit(self, request: Request) -> None:
        """Let a request wait for a slot; it arrives now.

        Raises:
            InputError: its tokens do not fit into a slot, or there is nothing to do.
        """
        length = len(request.ids_L) + request.output_len
        if length > self._engine.max_length:
            raise InputError(
                f"a request of {length} tokens does not fit into slots of "
                f"{self._engine.max_length}",
                remedy="shorten it, or make the slots longer",
            )
        if not len(request.ids_L) or request.output_len < 1:
            raise InputError(
                "a request has no prompt or asks for no token", remedy="give at least one of each"
            )
        self._waiting.append(_Sequence(request=request, arrival_s=self._clock()))

    def cancel(self, request: Request) -> None:
        """Forget a request that waits or runs, between turns; its slot is free at once."""
        self._waiting = deque(s for s in self._waiting if s.request is not request)
        for slot, sequence in list(self._running.items()):
            if sequence.request is request:
                self._vacate([slot])

    def turn(self) -> list[ServedRequest]:
        """Fill free slots by one chunk of prompts, then add a token to every running sequence.

        Returns:
            The requests that ended, in order of their slots.
        """
        return [*self._admit(), *self._decode()]

    def _admit(self) -> list[ServedRequest]:
        """Prefill what has waited longest, and those behind it of the same prompt length."""
        if not self._waiting or not self._free:
            return []
        length = len(self._waiting[0].request.ids_L)
        room = min(len(self._free), sequences_per_chunk(length, self._engine.chunk_tokens))
        alike = itertools.takewhile(lambda s: len(s.request.ids_L) == length, self._waiting)
        admitted = list(itertools.islice(alike, room))
        slots = [self._free.pop(0) for _ in admitted]
        for sequence, slot in zip(admitted, slots, strict=True):
            self._waiting.popleft()
            self._running[slot] = sequence
        prompts_BL = torch.stack([sequence.request.ids_L for sequence in admitted])
        samplers = {
            slot: Sampler(sequence.request.sampling)
            for sequence, slot in zip(admitted, slots, strict=True)
            if sequence.request.sampling is not None and sequence.request.sampling.temperature
        }
        tokens = self._engine.prefill(slots, prompts_BL, samplers).tolist()
        now = self._clock()
        for sequence in admitted:
            sequence.first_token_s = now
        return self._extend(dict(zip(slots, tokens, strict=True)), now)

    def _decode(self) -> list[ServedRequest]:
        if not self._running:
            return []
        tokens = self._engine.decode().tolist()
        return self._extend({slot: tokens[slot] for slot in sorted(self._running)}, self._clock())

    def _extend(self, tokens: dict[int, int], now: float) -> list[ServedRequest]:
        """Add a token to sequences by slot, and free the slots of those that end."""
        for slot, token in tokens.items():
            sequence = self._running[slot]
            sequence.tokens.append(token)
            if sequence.request.on_token is not None:
                sequence.request.on_token(token)
        ended = {slot: self._running[slot] for slot in tokens if self._running[slot].ended}
        if ended:
            self._vacate(list(ended))
        return [
            ServedRequest(
                request=sequence.request,
                tokens=tuple(sequence.tokens),
                arrival_s=sequence.arrival_s,
                first_token_s=sequence.first_token_s,
                last_token_s=now,
            )
            for sequence in ended.values()
        ]

    def _vacate(self, slots: list[int]) -> None:
        for slot in slots:
            del self._running[slot]
        self._free.extend(slots)
        self._engine.release(slots)
