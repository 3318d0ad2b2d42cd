"""Which steps an engine takes for a request: a static batch, or requests in flight.

How many steps of which composition lie before a request's first token and after it follows from
lengths, batch and the engine's limits alone, not from the architecture; so times stay sums over
subblocks, and the solver can bound TTFT, TPOT and throughput of either way to serve.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from puzzle_search.choices import ServingMode, check
from puzzle_search.cost.chunks import prompt_pieces, sequences_per_chunk
from puzzle_search.cost.memory import PREFILL_CHUNK_TOKENS
from puzzle_search.cost.scenario import Scenario
from puzzle_search.cost.step import Step
from puzzle_search.errors import InputError

Floats = NDArray[np.float64]

# Decode times of a static batch grow with its context almost linearly: a midpoint rule of this many
# nodes stands for the sum.
_CONTEXT_NODES = 8
# Every batch size up to this one, then every eighth: engines pad larger ones to multiples of 8.
_EVERY_BATCH = 256


@dataclass(frozen=True, kw_only=True)
class Serving:
    """How requests are served.

    Attributes:
        mode: ``in-flight``, continuous batching with chunked prefill at a steady state: as many
            requests as the batch has places are in flight, spread evenly, and a finished one makes
            room for the next; or ``static``: a whole batch is prefilled, then decoded to its end.
        max_batch: most sequences that the engine runs at once.
        max_tokens: most new tokens in one step; longer prompts are cut.
        concurrency: requests that clients keep in flight; those beyond the batch wait. None: as
            many as the batch.
        prefix_hit: part of each prompt whose keys and values are in the cache already.
        accepted_tokens: tokens that a sequence gains in a decode step, on average: above 1 with
            speculative decoding. The cost of drafting is not modelled.
    """

    mode: ServingMode = "in-flight"
    max_batch: int = 1024
    max_tokens: int = PREFILL_CHUNK_TOKENS
    concurrency: int | None = None
    prefix_hit: float = 0.0
    accepted_tokens: float = 1.0

    def __post_init__(self) -> None:
        check("serving", self.mode, ServingMode)
        _check(
            1 <= self.max_tokens <= 2**20, "max-num-batched-tokens", self.max_tokens, "1 to 2^20"
        )
        _check(1 <= self.max_batch <= 2**20, "max-num-seqs", self.max_batch, "1 to 1,048,576")
        _check(
            self.concurrency is None or 1 <= self.concurrency <= 10**6,
            "concurrency", self.concurrency, "1 to 1,000,000",
        )  # fmt: skip
        _check(0 <= self.prefix_hit < 1, "prefix-hit", self.prefix_hit, "from 0 to below 1")
        _check(1 <= self.accepted_tokens <= 64, "accepted-tokens", self.accepted_tokens, "1 to 64")
        if self.mode == "static":
            given = {"concurrency": self.concurrency, "prefix-hit": self.prefix_hit}
            given["accepted-tokens"] = self.accepted_tokens - 1
            used = ", ".join(name for name, value in given.items() if value)
            _check(not used, "serving", "static", f"in-flight, which {used} is about")

    def between(self, batch: int) -> range:
        """The batch sizes around one of `batches`, up to the next of them on either side."""
        step = 8 if batch > _EVERY_BATCH else 1
        most = min(self.max_batch, self.concurrency or self.max_batch)
        return range(max(1, batch - step + 1), min(most, batch + step - 1) + 1)

    def batches(self) -> tuple[int, ...]:
        """The batch sizes to price, up to the engine's largest and to the requests in flight."""
        most = min(self.max_batch, self.concurrency or self.max_batch)
        every = range(1, min(most, _EVERY_BATCH) + 1)
        return tuple(sorted({*every, *range(_EVERY_BATCH, most, 8), most}))


def _check(holds: bool, name: str, value: object, allowed: str) -> None:
    if not holds:
        raise InputError(f"{name} is {value}", remedy=f"give {allowed}")


@dataclass(frozen=True, kw_only=True)
class ServingOptions:
    """What a user says of serving, as in `Serving`; None leaves it to the engine."""

    mode: ServingMode | None = None
    max_batch: int | None = None
    max_tokens: int | None = None
    concurrency: int | None = None
    prefix_hit: float | None = None
    accepted_tokens: float | None = None

    def asked(self) -> dict[str, object]:
        """What is not left to the engine."""
        return {name: value for name, value in vars(self).items() if value is not None}

    def on(self, engine: Serving) -> Serving:
        """An engine's way to serve, with what was asked.

        Raises:
            InputError: a value is out of range, or more sequences than the engine can run.
        """
        if self.max_batch is not None and self.max_batch > engine.max_batch:
            raise InputError(
                f"max-num-seqs is {self.max_batch:,}; the engine, or its profile, goes to "
                f"{engine.max_batch:,}",
                remedy="ask for no more",
            )
        return replace(engine, **self.asked())  # type: ignore[arg-type]


@dataclass(frozen=True, kw_only=True)
class Share:
    """Steps of some kinds, (points, kinds), and how many of each a request sees.

    Attributes:
        step: their composition.
        before: steps until the first token, waiting included.
        after: steps from the first token to the last.
    """

    step: Step
    before: Floats
    after: Floats


def schedule(serving: Serving, scenario: Scenario, batch: ArrayLike, tp: int) -> list[Share]:
    """The steps of a request, for each batch size.

    Args:
        serving: how requests are served.
        scenario: lengths of the requests.
        batch: (points,), sequences that run at once, whole numbers.
        tp: tensor-parallel degree.
    """
    batches = np.asarray(batch, np.float64)
    if serving.mode == "static":
        return _static(serving, scenario, batches, tp)
    return [_in_flight(serving, scenario, batches, tp)]


def requests_in_flight(serving: Serving, batch: ArrayLike) -> Floats:
    """Requests that have been sent and are not done, for each batch size."""
    batches = np.asarray(batch, np.float64)
    return batches if serving.concurrency is None else np.maximum(batches, serving.concurrency)


def _static(serving: Serving, scenario: Scenario, batch: Floats, tp: int) -> list[Share]:
    """All prompts in chunks of whole sequences, then all decode steps together."""
    group = sequences_per_chunk(scenario.input_len, serving.max_tokens)
    full, rest = np.divmod(batch, group)
    sizes = np.stack([np.where(full > 0, group, rest), np.where(rest > 0, rest, group)], axis=1)
    counts = np.stack([full, (rest > 0).astype(np.float64)], axis=1)
    shares = [
        Share(
            step=Step.of(
                tp=tp,
                prompts=sizes,
                prompt_tokens=new,
                prompt_context=context,
                first_tokens=sizes if context == scenario.input_len else 0.0,
            ),
            before=counts,
            after=np.zeros_like(counts),
        )
        for new, context in prompt_pieces(scenario.input_len, serving.max_tokens)
    ]
    nodes = max(1, min(_CONTEXT_NODES, scenario.decode_steps))
    middle = (np.arange(nodes) + 0.5) / nodes
    contexts = scenario.input_len + 0.5 + middle * scenario.decode_steps
    each_steps = scenario.decode_steps / nodes
    step = Step.of(
        tp=tp, decoding=batch[:, None], decode_context=contexts, decode_spread=each_steps
    )
    each = np.full(step.shape, each_steps)
    return [*shares, Share(step=step, before=np.zeros_like(each), after=each)]


def _in_flight(serving: Serving, scenario: Scenario, batch: Floats, tp: int) -> Share:
    """A steady state: requests spread evenly, prompts computed beside the decode tokens.

    A request takes s steps for its n prompt tokens and m decode steps, so that r = batch / (s + m)
    requests start, and end, in a step. Where r s is below 1, that is the part of the steps with a
    piece of a prompt in them; else every step has one or more. Where r (n + m) tokens are more than
    a step may have, every step is full, and requests wait for room.
    """
    new = scenario.input_len * (1 - serving.prefix_hit)
    steps_after = scenario.decode_steps / serving.accepted_tokens
    room_most = float(serving.max_tokens)
    pieces = np.full_like(batch, np.ceil(new / room_most))
    for _ in range(3):  # decode tokens leave less room for prompts, which then decode later
        room = np.maximum(1.0, room_most - batch * steps_after / (pieces + steps_after))
        pieces = np.maximum(pieces, np.ceil(new / room))
    per_step = np.minimum(batch / (pieces + steps_after), room_most / (new + steps_after))
    lifetime = batch / per_step
    mixed = np.minimum(1.0, per_step * pieces)
    crowd = np.maximum(1.0, per_step * pieces)  # prompts in a step that has any
    alone = mixed < 1
    wait = np.where(alone, pieces, lifetime - steps_after)
    after_mixed = np.maximum(0.0, mixed * lifetime - wait)
    piece_tokens = per_step * new / (mixed * crowd)
    # The mean context of a prompt's pieces, at their ends.
    piece_context = scenario.input_len - new + piece_tokens * (pieces + 1) / 2
    first_tokens = crowd / pieces
    decoding = np.where(alone, batch - 1, per_step * steps_after)
    kinds = 2
    step = Step.of(
        tp=tp,
        decoding=np.stack([decoding, batch], axis=1),
        decode_context=scenario.input_len + scenario.output_len / 2,
        decode_spread=scenario.output_len,
        prompts=np.stack([crowd, np.zeros_like(crowd)], axis=1),
        prompt_tokens=np.stack([piece_tokens] * kinds, axis=1),
        prompt_context=np.stack([piece_context] * kinds, axis=1),
        prompt_spread=np.stack([piece_tokens * (pieces - 1)] * kinds, axis=1),
        first_tokens=np.stack([first_tokens, np.zeros_like(crowd)], axis=1),
    )
    before = np.stack([wait, np.zeros_like(wait)], axis=1)
    after = np.stack([after_mixed, np.maximum(0.0, steps_after - after_mixed)], axis=1)
    # Clients beyond the batch wait for a place: by Little's law each for (clients - batch) / batch
    # times as long as a request takes in the engine.
    queue = (requests_in_flight(serving, batch) / batch - 1)[:, None] * (before + after)
    return Share(step=step, before=before + queue, after=after)
