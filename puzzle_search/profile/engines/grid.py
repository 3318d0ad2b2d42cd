"""Where a profile through vLLM measures, and what it asks vLLM for at each point."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from puzzle_search.arch import ParentConfig
from puzzle_search.cost.memory import PREFILL_CHUNK_TOKENS
from puzzle_search.engines.process import Request
from puzzle_search.errors import InputError
from puzzle_search.profile.points.point import Point

# Decode steps of every run that are left out.
WARM_UP_STEPS = 8


@dataclass(frozen=True, kw_only=True)
class EngineGrid:
    """Where to measure, and how often.

    Attributes:
        batches: batch sizes.
        prefill_tokens: prompt lengths. Beyond a chunk they are multiples of it.
        decode_contexts: tokens attended to in a decode step.
        tp_degrees: tensor-parallel degrees; each is measured as the local shapes on one GPU.
        blocks: repeats of a variant in the smaller of its two children; halved until both fit.
        chunk_tokens: most new tokens in one engine step.
        decode_steps: decode steps of a run that are measured, after some that warm up.
        min_samples: samples of the time of every point, at least.
        max_samples: samples of it, at most.
        error_limit: where both children run in turn, samples are taken until the latency's
            standard error is that part of it,
        max_seconds: for so long at most.
        spread_limit: (p90 - p10) / median of a latency that counts as steady.
    """

    batches: tuple[int, ...]
    prefill_tokens: tuple[int, ...]
    decode_contexts: tuple[int, ...]
    blocks: int
    tp_degrees: tuple[int, ...] = (1,)
    chunk_tokens: int = PREFILL_CHUNK_TOKENS
    decode_steps: int = 32
    min_samples: int = 5
    max_samples: int = 16
    error_limit: float = 0.05
    max_seconds: float = 12.0
    spread_limit: float = 0.02

    def check(self, config: ParentConfig) -> None:
        """Check that vLLM can run every point.

        Raises:
            InputError: a prompt is no multiple of the chunk, or a context too short or too long.
        """
        for tokens in self.prefill_tokens:
            if tokens > self.chunk_tokens and tokens % self.chunk_tokens:
                raise InputError(
                    f"a prompt of {tokens} tokens ends inside a chunk of {self.chunk_tokens}",
                    remedy=f"profile multiples of {self.chunk_tokens} tokens",
                )
        if min(r.input_len for p in self.points(attends=True) for r in self.requests(p)) < 1:
            raise InputError(
                f"a context of {min(self.decode_contexts)} tokens is shorter than the "
                f"{self.decode_steps + WARM_UP_STEPS} decode steps of a run allow",
                remedy="profile longer contexts",
            )
        if self.max_length > config.max_position_embeddings:
            raise InputError(
                f"a run of {self.max_length} tokens, prompt and output, exceeds the "
                f"{config.max_position_embeddings} positions of {config.name}",
                remedy="profile shorter contexts",
            )

    @property
    def max_length(self) -> int:
        """Tokens of the longest sequence that any run holds, prompt and output."""
        points = self.points(attends=True)
        return max(request.length for point in points for request in self.requests(point))

    @property
    def max_batch(self) -> int:
        """Sequences that run at once, at most."""
        return max(point.batch for point in self.points(attends=True))

    def points(self, *, attends: bool) -> Iterator[Point]:
        """The points of a variant, small ones first.

        The time of what does not attend depends on the rows of a step alone, so it is measured once
        for each number of rows.
        """
        rows: set[int] = set()
        for point in sorted([*self._prefill(), *self._decode()], key=lambda p: (p.phase, p.size)):
            if attends:
                yield point
            elif point.history == 0 and point.rows not in rows:
                rows.add(point.rows)
                yield point

    def _prefill(self) -> Iterator[Point]:
        short = {tokens for tokens in self.prefill_tokens if tokens <= self.chunk_tokens}
        long = set(self.prefill_tokens) - short
        if long:
            short.add(self.chunk_tokens)
        # A full chunk of every prompt length is a step that every larger batch takes.
        full = {min(self.chunk_tokens // tokens, max(self.batches)) for tokens in short}
        for batch in sorted(full | set(self.batches)):
            for tokens in sorted(short):
                if batch * tokens <= self.chunk_tokens:
                    yield Point(phase="prefill", batch=batch, tokens=tokens, context=tokens)
        for tokens in sorted(long):
            yield Point(phase="prefill", batch=1, tokens=self.chunk_tokens, context=tokens)

    def _decode(self) -> Iterator[Point]:
        for batch in self.batches:
            for context in self.decode_contexts:
                yield Point(phase="decode", batch=batch, tokens=1, context=context)

    def requests(self, point: Point) -> list[Request]:
        """The runs whose times, the first less the second, give the latency of a point."""
        if point.phase == "prefill":
            whole = Request(batch=point.batch, input_len=point.context, output_len=1)
            if point.history == 0:
                return [whole]
            return [whole, Request(batch=1, input_len=point.history, output_len=1)]
        # Prompts enter chunk by chunk, the first ones decoding while the last are read, so that
        # over the steps in which all decode the sequences are half that many steps apart on
        # average. The steps that count come after the warm-up; their middle has the context.
        entering = -(-point.batch * point.context // self.chunk_tokens)
        steps = WARM_UP_STEPS + self.decode_steps
        ahead = (entering + steps + WARM_UP_STEPS) // 2
        return [
            Request(batch=point.batch, input_len=point.context - ahead, output_len=entering + steps)
        ]
