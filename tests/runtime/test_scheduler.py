"""Continuous batching gives every request the tokens that transformers gives it alone."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from puzzle_search.checkpoint import load_decoder
from puzzle_search.errors import InputError
from puzzle_search.model import Sampling, generate
from puzzle_search.runtime import (
    Engine,
    Request,
    Scheduler,
    ServedRequest,
    ServingDecoder,
    precision_on,
)
from tests.model.pico import random_ids, write_parent

CPU = torch.device("cpu")
OUTPUTS = (5, 1, 9, 2, 7, 4, 3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("parent")


@pytest.fixture(scope="module")
def reference(folder: Path) -> torch.nn.Module:
    model: torch.nn.Module = write_parent(folder, num_key_value_heads=2, num_hidden_layers=3)
    return model


@pytest.fixture(scope="module")
def decoder(folder: Path, reference: torch.nn.Module) -> ServingDecoder:
    return ServingDecoder.from_checkpoint(folder, precision_on("fp32", CPU), CPU)


def greedy(model: torch.nn.Module, request: Request) -> tuple[int, ...]:
    """What transformers adds to a prompt, whatever the tokens."""
    out = model.generate(  # type: ignore[operator]
        request.ids_L[None],
        attention_mask=torch.ones_like(request.ids_L[None]),
        max_new_tokens=request.output_len,
        min_new_tokens=request.output_len,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    return tuple(out[0, len(request.ids_L) :].tolist())


def requests(lengths: list[int]) -> list[Request]:
    return [
        Request(ids_L=random_ids(length, seed=number), output_len=output)
        for number, (length, output) in enumerate(
            zip(lengths, itertools.cycle(OUTPUTS), strict=False)
        )
    ]


def serve(scheduler: Scheduler, asked: list[Request]) -> list[ServedRequest]:
    """All results, in the order of ``asked``; the second half arrives while the first runs."""
    half = len(asked) // 2
    for request in asked[:half]:
        scheduler.submit(request)
    done = scheduler.turn()
    for request in asked[half:]:
        scheduler.submit(request)
    while scheduler.busy:
        done += scheduler.turn()
    return sorted(done, key=lambda served: served.arrival_s)


@pytest.mark.parametrize("slots", [1, 3, 8])
@pytest.mark.parametrize("lengths", [[6] * 10, [6, 6, 11, 3, 3, 3, 6, 20, 6, 3]])
@pytest.mark.parametrize("chunk_tokens", [4, 16, 8192])
def test_tokens_are_those_of_each_request_alone(
    reference: torch.nn.Module,
    decoder: ServingDecoder,
    slots: int,
    lengths: list[int],
    chunk_tokens: int,
) -> None:
    engine = Engine(decoder, slots=slots, max_length=32, chunk_tokens=chunk_tokens)
    asked = requests(lengths)
    ticks = itertools.count()
    made = serve(Scheduler(engine, clock=lambda: float(next(ticks))), asked)
    assert [served.tokens for served in made] == [greedy(reference, r) for r in asked]


def test_a_slot_is_filled_in_the_turn_after_it_is_free(decoder: ServingDecoder) -> None:
    engine = Engine(decoder, slots=2, max_length=16)
    prompt = random_ids(4)
    scheduler = Scheduler(engine, clock=lambda: 0.0)
    for output in (2, 4, 2, 2):
        scheduler.submit(Request(ids_L=prompt, output_len=output))
    ended = [len(scheduler.turn()) for _ in range(4)]
    # 1: both prompts, one step: the first ends. 2: the third comes and ends. 3: the fourth
    # comes and ends, and the second has its fourth token.
    assert ended == [1, 1, 2, 0]
    assert not scheduler.busy


def test_times_of_a_request_on_a_clock_that_the_test_winds(decoder: ServingDecoder) -> None:
    now = iter([10.0, 11.5, 12.0, 12.25])
    scheduler = Scheduler(Engine(decoder, slots=1, max_length=16), clock=lambda: next(now))
    scheduler.submit(Request(ids_L=random_ids(4), output_len=3))
    [served] = [*scheduler.turn(), *scheduler.turn()]
    assert (served.arrival_s, served.first_token_s, served.last_token_s) == (10.0, 11.5, 12.25)
    assert served.ttft_ms == pytest.approx(1500)
    assert served.tpot_ms == pytest.approx(375)
    assert served.latency_ms == pytest.approx(2250)


@pytest.mark.parametrize(("length", "output"), [(10, 7), (0, 4), (4, 0)])
def test_requests_that_cannot_be_served(decoder: ServingDecoder, length: int, output: int) -> None:
    scheduler = Scheduler(Engine(decoder, slots=1, max_length=16))
    with pytest.raises(InputError, match="a request"):
        scheduler.submit(Request(ids_L=random_ids(length), output_len=output))


def test_stop_tokens_end_a_request_and_nothing_else(
    reference: torch.nn.Module, decoder: ServingDecoder
) -> None:
    asked = requests([6, 6, 11, 3])
    whole = [greedy(reference, replace(request, output_len=12)) for request in asked]
    stops = [frozenset({tokens[n]}) for n, tokens in enumerate(whole)]
    scheduler = Scheduler(Engine(decoder, slots=2, max_length=32))
    told: list[list[int]] = [[] for _ in asked]
    for request, stop, heard in zip(asked, stops, told, strict=True):
        scheduler.submit(replace(request, output_len=12, stop_tokens=stop, on_token=heard.append))
    while scheduler.busy:
        scheduler.turn()
    expected = [
        tokens[: next(n for n, token in enumerate(tokens) if token in stop) + 1]
        for tokens, stop in zip(whole, stops, strict=True)
    ]
    assert [tuple(heard) for heard in told] == expected


def test_a_cancelled_request_leaves_its_slot_to_the_next(
    reference: torch.nn.Module, decoder: ServingDecoder
) -> None:
    kept, running, waiting, last = (
        replace(request, output_len=9) for request in requests([6, 11, 3, 6])
    )
    scheduler = Scheduler(Engine(decoder, slots=2, max_length=32))
    for request in (kept, running, waiting, last):
        scheduler.submit(request)
    scheduler.turn()
    scheduler.turn()
    assert (scheduler.running, scheduler.waiting) == (2, 2)
    scheduler.cancel(running)
    scheduler.cancel(waiting)
    scheduler.cancel(waiting)  # once more is nothing
    assert (scheduler.running, scheduler.waiting) == (1, 1)
    scheduler.turn()
    assert (scheduler.running, scheduler.waiting) == (2, 0)
    done = []
    while scheduler.busy:
        done += scheduler.turn()
    assert {one.request: one.tokens for one in done} == {
        request: greedy(reference, request) for request in (kept, last)
    }


def test_a_seed_decides_what_is_drawn_whatever_runs_beside_it(
    folder: Path, decoder: ServingDecoder
) -> None:
    asked = [
        replace(
            request,
            output_len=9,
            sampling=Sampling(temperature=1.5, top_p=top_p, seed=seed) if top_p else None,
        )
        for seed, (request, top_p) in enumerate(
            zip(requests([6, 6, 11, 3, 6]), (1.0, None, 0.7, 1.0, 0.9), strict=True)
        )
    ]
    model = load_decoder(folder)
    alone = [
        tuple(
            int(token)
            for token in generate(
                model, request.ids_L[None], max_new_tokens=9, sampling=request.sampling
            )
        )
        for request in asked
    ]
    assert len(set(alone)) == len(alone)
    engine = Engine(decoder, slots=3, max_length=32)
    served = serve(Scheduler(engine), asked)
    assert [one.tokens for one in served] == alone
