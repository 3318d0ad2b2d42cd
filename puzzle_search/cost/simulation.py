"""Requests one by one through an engine's steps: percentiles that a steady state does not tell.

The same step costs as everywhere. Each step decodes a token of every running request and gives what
is left of its tokens to prompts, in order of arrival, in pieces where they do not fit.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import deque
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from puzzle_search.arch import ArchitectureSpec, Subblock
from puzzle_search.cost.scenario import Scenario
from puzzle_search.cost.step import Step
from puzzle_search.cost.target import Target
from puzzle_search.errors import InputError

# Knots of the step times per doubling of the sequences, and of the prompt tokens.
_KNOTS = 2
# Knots between the shortest context and the longest: step times bend where a window ends.
_CONTEXT_KNOTS = 5
# A rate is beyond capacity where the queue grows to so many requests per place in the batch.
_QUEUE = 20


@dataclass(frozen=True, kw_only=True)
class Load:
    """What clients send.

    Attributes:
        requests: that are counted.
        concurrency: kept in flight by clients that send the next request when one is done; None
            where requests arrive at a rate.
        requests_per_second: of a Poisson process; None with a concurrency.
        is_steady: the engine is busy from the start, with requests at all stages, which are not
            counted; otherwise it is empty, and the first requests come together.
        seed: of arrivals and stages.
    """

    requests: int = 1000
    concurrency: int | None = None
    requests_per_second: float | None = None
    is_steady: bool = True
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Percentiles:
    """Of the requests of a simulation, or of a measurement."""

    p50: float
    p99: float

    @classmethod
    def of(cls, values: NDArray[np.float64]) -> Percentiles:
        """Of these values."""
        p50, p99 = np.percentile(values, [50, 99])
        return cls(p50=float(p50), p99=float(p99))

    def as_dict(self) -> dict[str, float]:
        """As results hold it."""
        return {"p50": round(self.p50, 4), "p99": round(self.p99, 4)}


@dataclass(frozen=True, kw_only=True)
class Simulated:
    """What the clients see, and the engine's output tokens per second over all its devices."""

    ttft_ms: Percentiles
    tpot_ms: Percentiles
    tokens_per_second: float

    def as_dict(self) -> dict[str, Any]:
        """As results hold it."""
        return {
            "ttft_ms": self.ttft_ms.as_dict(),
            "tpot_ms": self.tpot_ms.as_dict(),
            "tokens_per_second": round(self.tokens_per_second, 3),
        }


def simulate(
    spec: ArchitectureSpec,
    target: Target,
    scenario: Scenario,
    load: Load,
    *,
    batch: int,
    tp: int,
) -> Simulated:
    """Send requests of one length to an engine that runs an architecture.

    Args:
        spec: the architecture.
        target: device and engine; its serving mode is in-flight.
        scenario: lengths of every request.
        load: the requests.
        batch: most requests that run at once; others wait.
        tp: tensor-parallel degree.

    Raises:
        InputError: requests arrive faster than they can be served, or a profile does not cover a
            step.
    """
    engine = _Engine(
        times=_StepTimes.of(spec, target, scenario, batch=batch, tp=tp),
        prompt_tokens=max(1, round(scenario.input_len * (1 - target.serving.prefix_hit))),
        context=scenario.input_len,
        steps=math.ceil(scenario.decode_steps / target.serving.accepted_tokens),
        growth=target.serving.accepted_tokens,
        batch=batch,
        max_tokens=target.serving.max_tokens,
    )
    first_ms, last_ms, sent_ms = engine.run(load)
    ttft = first_ms - sent_ms
    tpot = (last_ms - first_ms) / max(1, scenario.decode_steps)
    # In a steady state, at the rate at which requests are done; else over the whole run.
    begin_ms, done = (last_ms[0], len(ttft) - 1) if load.is_steady else (sent_ms[0], len(ttft))
    seconds = max(1e-9, (last_ms[-1] - begin_ms) / 1e3)
    return Simulated(
        ttft_ms=Percentiles.of(ttft),
        tpot_ms=Percentiles.of(tpot),
        tokens_per_second=float(done * scenario.output_len / seconds),
    )


@dataclass(frozen=True, kw_only=True)
class _StepTimes:
    """Milliseconds of a step, trilinear in sequences that decode, prompt tokens and context."""

    sequences: list[float]
    tokens: list[float]
    context: list[float]
    table_ms: list[list[list[float]]]

    @classmethod
    def of(
        cls, spec: ArchitectureSpec, target: Target, scenario: Scenario, *, batch: int, tp: int
    ) -> _StepTimes:
        new = max(1.0, scenario.input_len * (1 - target.serving.prefix_hit))
        most = min(float(target.serving.max_tokens), batch * new)
        whole = batch * (new + 1) <= target.serving.max_tokens  # no prompt is ever cut
        sequences = _knots(1, batch, max(1, batch - 1))
        tokens = _knots(new if whole else min(new, 64), most, new)
        low, high = scenario.input_len + 1, scenario.tokens
        contexts = np.linspace(low, high, _CONTEXT_KNOTS)
        d, p, context = np.meshgrid([0.0, *sequences], [0.0, *tokens], contexts, indexing="ij")
        prompts = np.where(p > 0, np.clip(p / new, 1.0, batch), 0.0)
        d = np.minimum(d, batch - prompts)  # they share the places of the batch
        piece = np.where(p > 0, np.minimum(p, new), 1.0)
        step = Step.of(
            tp=tp,
            decoding=np.where(p + d > 0, d, 1.0),
            decode_context=context,
            # Requests at all stages: as far apart as their mean lets them be.
            decode_spread=2 * np.minimum(context - low, high - context),
            prompts=prompts,
            prompt_tokens=piece,
            prompt_context=scenario.input_len - (new - piece) / 2,
            prompt_spread=new - piece,
            first_tokens=np.minimum(prompts, p / new),
        )
        us = target.latency.outside_us(step)
        names: list[tuple[Subblock, str]] = [("attention", b.attention) for b in spec.blocks]
        names += [("ffn", b.ffn) for b in spec.blocks]
        for subblock, name in dict.fromkeys(names):
            count = names.count((subblock, name))
            us = us + count * target.latency.subblock_us(subblock, name, step)
        return cls(
            sequences=[0.0, *sequences],
            tokens=[0.0, *tokens],
            context=contexts.tolist(),
            table_ms=(us / 1e3).tolist(),
        )

    def at(self, sequences: float, tokens: float, context: float) -> float:
        """Milliseconds of one step."""
        i, u = _place(self.sequences, sequences)
        j, v = _place(self.tokens, tokens)
        k, w = _place(self.context, context)
        total = 0.0
        for di, dj in product((0, 1), (0, 1)):
            weight = (u if di else 1 - u) * (v if dj else 1 - v)
            if weight:
                at_low, at_high = self.table_ms[i + di][j + dj][k : k + 2]
                total += weight * (at_low + w * (at_high - at_low))
        return total


def _knots(least: float, most: float, *others: float) -> list[float]:
    count = max(2, 1 + math.ceil(_KNOTS * math.log2(max(2.0, most / least))))
    # Rounded, so that a knot on the edge of what was measured is not beyond it.
    values = {*np.geomspace(least, most, count).round(9).tolist(), *others}
    return sorted(value for value in values if value <= most)


def _place(axis: list[float], at: float) -> tuple[int, float]:
    index = min(max(0, bisect_right(axis, at) - 1), len(axis) - 2)
    length = axis[index + 1] - axis[index]
    return index, min(1.0, max(0.0, (at - axis[index]) / length)) if length else 0.0


@dataclass(kw_only=True)
class _Group:
    """Neighbouring requests that got their first token in the same step."""

    first: int
    count: int
    steps_left: int


@dataclass(kw_only=True)
class _Engine:
    """An engine at work. Requests are numbered in order of arrival; times are in milliseconds."""

    times: _StepTimes
    prompt_tokens: int
    context: int
    steps: int
    growth: float
    batch: int
    max_tokens: int
    now_ms: float = 0.0
    sent_ms: list[float] = field(default_factory=list)
    first_ms: list[float] = field(default_factory=list)
    last_ms: list[float] = field(default_factory=list)
    groups: deque[_Group] = field(default_factory=deque)
    context_sum: float = 0.0
    begun_tokens: int = 0

    def run(self, load: Load) -> tuple[NDArray[np.float64], ...]:
        """Times of the first and the last token, and of arrival, of the counted requests."""
        rng = np.random.default_rng(load.seed)
        warm = self._start(load, rng)
        total = warm + load.requests
        rate = load.requests_per_second
        if rate is not None:
            gaps_ms = rng.exponential(1e3 / rate, load.requests)
            self.sent_ms += np.cumsum(gaps_ms).tolist()
        else:
            assert load.concurrency is not None
            waiting = load.concurrency - (warm if load.is_steady else 0)
            self.sent_ms += [0.0] * min(max(0, waiting), load.requests)
        while len(self.last_ms) < total:
            done = self._step()
            if rate is None:  # who is done sends the next request
                more = done if load.is_steady else min(done, total - len(self.sent_ms))
                self.sent_ms += [self.now_ms] * more
            elif len(self.first_ms) > warm + 100:
                self._check_queue(rate)
        counted = slice(warm, total)
        return tuple(
            np.array(times[counted]) for times in (self.first_ms, self.last_ms, self.sent_ms)
        )

    def _start(self, load: Load, rng: np.random.Generator) -> int:
        """Fill the engine with requests at all stages, and return how many."""
        if not load.is_steady or load.concurrency is None:
            return 0
        warm = min(load.concurrency, self.batch)
        stages = np.sort(rng.integers(0, max(1, self.steps), warm))[::-1]
        for number, done in enumerate(stages.tolist()):
            left = max(1, self.steps - done)
            self.groups.append(_Group(first=number, count=1, steps_left=left))
            self.context_sum += self.context + done * self.growth
        self.sent_ms, self.first_ms = [0.0] * warm, [0.0] * warm
        return warm

    @property
    def _running(self) -> int:
        return len(self.first_ms) - len(self.last_ms)

    def _step(self) -> int:
        """One step, or several like it; returns how many requests are done with it."""
        decoding, started = self._running, len(self.first_ms)
        arrived = bisect_right(self.sent_ms, self.now_ms)
        tokens, ends = self._prompts(decoding, arrived - started)
        if not decoding and not tokens:
            self.now_ms = self.sent_ms[started]
            return 0
        context = self.context_sum / decoding if decoding else float(self.context)
        if tokens:
            self._advance(1, self.times.at(decoding, tokens, context))
        else:
            step_ms = self.times.at(decoding, 0.0, context)
            steps = min(self.groups[0].steps_left, 64)
            if arrived < len(self.sent_ms) and decoding < self.batch:
                until = self.sent_ms[arrived] - self.now_ms
                steps = max(1, min(steps, math.ceil(until / step_ms)))
            middle = context + self.growth * (steps - 1) / 2
            self._advance(steps, self.times.at(decoding, 0.0, middle))
        if ends:
            self.first_ms += [self.now_ms] * ends
            self.context_sum += ends * (self.context + 1)
            self.groups.append(_Group(first=started, count=ends, steps_left=self.steps))
        return self._finish()

    def _prompts(self, decoding: int, waiting: int) -> tuple[int, int]:
        """Prompt tokens of the next step, and how many prompts end with it."""
        room = self.max_tokens - decoding
        places = min(waiting, self.batch - decoding)
        tokens = ends = 0
        while ends < places and room > 0:
            piece = min(room, self.prompt_tokens - self.begun_tokens)
            tokens, room = tokens + piece, room - piece
            self.begun_tokens += piece
            if self.begun_tokens == self.prompt_tokens:
                self.begun_tokens, ends = 0, ends + 1
        return tokens, ends

    def _advance(self, steps: int, step_ms: float) -> None:
        self.now_ms += steps * step_ms
        for group in self.groups:
            group.steps_left -= steps
        self.context_sum += self._running * steps * self.growth

    def _finish(self) -> int:
        done = 0
        while self.groups and self.groups[0].steps_left <= 0:
            group = self.groups.popleft()
            done += group.count
            self.context_sum -= group.count * (self.context + self.steps * self.growth)
            self.last_ms += [self.now_ms] * group.count
        self.context_sum = max(self.context_sum, 0.0)
        return done

    def _check_queue(self, rate: float) -> None:
        arrived = bisect_right(self.sent_ms, self.now_ms)
        if arrived - len(self.first_ms) > _QUEUE * self.batch:
            per_second = len(self.last_ms) / self.now_ms * 1e3
            raise InputError(
                f"requests arrive at {rate:g}/s, beyond what one replica serves: about "
                f"{per_second:.3g}/s",
                remedy="ask for a lower --request-rate, or for a faster child",
            )
