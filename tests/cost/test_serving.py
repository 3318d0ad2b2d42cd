"""Which steps a request sees: by hand, by counting, and against requests one by one."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from puzzle_search.arch import ArchitectureSpec, SearchSpace
from puzzle_search.cost import CostTable, OperatingPoint, Scenario, Target, parse_dtype
from puzzle_search.cost.pricing import build_cost_table
from puzzle_search.cost.serving import Serving, ServingOptions, schedule
from puzzle_search.cost.simulation import Load, simulate
from puzzle_search.cost.step import Step
from puzzle_search.errors import InputError
from tests.solve.helpers import SeededLatency, tiny_config

CONFIG = tiny_config(3)
SPACE = SearchSpace.uniform(CONFIG, attention=["gqa_4"], ffn=["mlp_64"])
SPEC = ArchitectureSpec.identity(CONFIG)


def target(serving: Serving) -> Target:
    return Target(
        gpu="test",
        engine="test",
        latency=SeededLatency(3),  # type: ignore[arg-type]
        memory_limit_bytes=10**12,
        dtype=parse_dtype("bf16"),
        batches=(1,),
        tp_degrees=(1,),
        serving=serving,
    )


def table(scenario: str, batches: list[int], serving: Serving) -> CostTable:
    return build_cost_table(
        CONFIG,
        target(serving),
        Scenario.parse(scenario),
        [OperatingPoint(batch=batch, tp=1) for batch in batches],
        attention=["gqa_4"],
        ffn=["mlp_64"],
    )


def tokens(serving: Serving, scenario: str, batch: int) -> tuple[float, float, float]:
    """Prompt tokens and decode tokens that a request's steps hold, and how many steps it sees."""
    prompt = decode = steps = 0.0
    for share in schedule(serving, Scenario.parse(scenario), [batch], 1):
        seen = share.before + share.after
        prompt += float((share.step.prompts * share.step.prompt_tokens * seen).sum())
        decode += float((share.step.decoding * seen).sum())
        steps += float(seen.sum())
    return prompt, decode, steps


# --- the steady state -----------------------------------------------------------------------------


@given(
    input_len=st.integers(1, 5000),
    output_len=st.integers(2, 3000),
    batch=st.integers(1, 600),
    max_tokens=st.sampled_from([1024, 2048, 8192]),
)
def test_while_one_request_is_served_the_others_are_too(
    input_len: int, output_len: int, batch: int, max_tokens: int
) -> None:
    # Little's law in tokens: over one request's life, as many prompts and decode steps are computed
    # as there are requests in the engine.
    serving = Serving(max_tokens=max_tokens)
    prompt, decode, _ = tokens(serving, f"{input_len}/{output_len}", batch)
    assert prompt == pytest.approx(batch * input_len, rel=1e-6)
    assert decode == pytest.approx(batch * (output_len - 1), rel=1e-6)


@given(input_len=st.integers(1, 5000), output_len=st.integers(2, 3000), batch=st.integers(1, 600))
def test_no_step_has_more_tokens_than_it_may(input_len: int, output_len: int, batch: int) -> None:
    scenario = Scenario(input_len=input_len, output_len=output_len)
    (share,) = schedule(Serving(max_tokens=2048), scenario, [batch], 1)
    rows = np.where(share.before + share.after > 0, share.step.rows, 0.0)
    assert rows.max() <= 2048 * (1 + 1e-9)


@pytest.mark.parametrize("scenario", ["16/9", "300/40", "1/2"])
def test_one_request_alone_is_a_batch_of_one(scenario: str) -> None:
    flying, static = (
        table(scenario, [1], Serving(mode=mode, max_tokens=8192)).cost(SPEC, 0)
        for mode in ("in-flight", "static")
    )
    assert flying.ttft_ms == pytest.approx(static.ttft_ms)
    # Its decode steps are priced at their mean context, the sum of a straight line.
    assert flying.tpot_ms == pytest.approx(static.tpot_ms, rel=0.02)


def test_prompts_beside_decode_tokens_by_hand() -> None:
    # Ten requests of 100 tokens in and 51 out: every request has a step with its prompt beside nine
    # others that decode, and 50 more, of which nine have another's prompt in them.
    (share,) = schedule(Serving(), Scenario.parse("100/51"), [10], 1)
    step = share.step
    assert step.rows[0].tolist() == pytest.approx([109, 10])
    assert (step.prompts[0].tolist(), step.decoding[0].tolist()) == ([1, 0], [9, 10])
    assert (share.before[0].tolist(), share.after[0].tolist()) == ([1, 0], [9, 41])


def test_a_prompt_longer_than_a_step_takes_several() -> None:
    (share,) = schedule(Serving(max_tokens=100), Scenario.parse("250/501"), [1], 1)
    assert share.before[0].tolist() == [3, 0]
    assert share.step.prompt_tokens[0, 0] == pytest.approx(250 / 3)
    # Pieces end at a third, two thirds and all of the prompt.
    assert share.step.prompt_context[0, 0] == pytest.approx(250 * 2 / 3)
    assert share.step.first_tokens[0, 0] == pytest.approx(1 / 3)


def test_where_steps_are_full_more_requests_only_wait() -> None:
    at = table("1000/9", [8, 64, 512], Serving(max_tokens=1024))
    few, many, more = (at.cost(SPEC, index) for index in range(3))
    assert more.tokens_per_second_per_gpu == pytest.approx(many.tokens_per_second_per_gpu)
    assert few.ttft_ms < many.ttft_ms < more.ttft_ms
    assert more.tpot_ms == pytest.approx(many.tpot_ms)


def test_clients_beyond_the_batch_wait_for_a_place() -> None:
    alone = table("64/33", [8], Serving()).cost(SPEC, 0)
    crowd = table("64/33", [8], Serving(concurrency=24)).cost(SPEC, 0)
    assert crowd.tokens_per_second_per_gpu == pytest.approx(alone.tokens_per_second_per_gpu)
    assert crowd.tpot_ms == pytest.approx(alone.tpot_ms)
    assert crowd.latency_ms == pytest.approx(3 * alone.latency_ms)
    assert (crowd.in_flight, alone.in_flight) == (24, 8)


def test_cached_prefixes_and_accepted_tokens_leave_less_to_do() -> None:
    prompt, decode, _ = tokens(Serving(prefix_hit=0.75, accepted_tokens=2.0), "400/101", 4)
    assert prompt == pytest.approx(4 * 100)
    assert decode == pytest.approx(4 * 50)


# --- requests one by one --------------------------------------------------------------------------


@pytest.mark.parametrize("scenario", ["64/100", "500/20", "16/200"])
@pytest.mark.parametrize("batch", [1, 7, 40])
def test_a_simulation_finds_the_steady_state(scenario: str, batch: int) -> None:
    serving = Serving(max_tokens=512)
    expected = table(scenario, [batch], serving).cost(SPEC, 0)
    seen = simulate(
        SPEC, target(serving), Scenario.parse(scenario),
        Load(concurrency=batch, requests=400), batch=batch, tp=1,
    )  # fmt: skip
    assert seen.tokens_per_second == pytest.approx(expected.tokens_per_second_per_gpu, rel=0.03)
    assert seen.tpot_ms.p50 == pytest.approx(expected.tpot_ms, rel=0.05)
    assert seen.ttft_ms.p50 <= seen.ttft_ms.p99


def test_every_step_of_a_small_burst_by_hand() -> None:
    # Two requests of 30 tokens in and 3 out, at most 40 tokens a step: the first prompt and ten
    # tokens of the second; the rest of it beside the first's decode token; then both decode.
    serving = Serving(max_tokens=40)
    seen = simulate(
        SPEC, target(serving), Scenario.parse("30/3"),
        Load(concurrency=2, requests=2, is_steady=False), batch=2, tp=1,
    )  # fmt: skip
    latency = SeededLatency(3)

    def step_ms(**sizes: float) -> float:
        step = Step.of(tp=1, **sizes)
        us = latency.outside_us(step)
        for subblock, name in (("attention", "gqa_4"), ("ffn", "mlp_64")):
            us = us + 3 * latency.subblock_us(subblock, name, step)
        return float(us) / 1e3

    first = step_ms(prompts=40 / 30, prompt_tokens=30, first_tokens=40 / 30)
    second = first + step_ms(
        decoding=1, decode_context=31, prompts=1, prompt_tokens=20, prompt_context=25,
        first_tokens=20 / 30,
    )  # fmt: skip
    # The median of two is their mean; times between knots are not exact.
    assert seen.ttft_ms.p50 == pytest.approx((first + second) / 2, rel=0.05)


def test_requests_beyond_capacity_are_refused() -> None:
    serving = Serving()
    capacity = table("64/100", [4], serving).cost(SPEC, 0).requests_per_second
    ask = {"spec": SPEC, "target": target(serving), "scenario": Scenario.parse("64/100")}
    calm = simulate(load=Load(requests_per_second=0.5 * capacity), batch=4, tp=1, **ask)
    assert calm.tokens_per_second == pytest.approx(0.5 * capacity * 100, rel=0.15)
    with pytest.raises(InputError, match="beyond what one replica serves"):
        simulate(load=Load(requests_per_second=3 * capacity), batch=4, tp=1, **ask)


@pytest.mark.parametrize(
    "asked",
    [
        {"max_tokens": 0}, {"concurrency": 0}, {"prefix_hit": 1.0}, {"accepted_tokens": 0.5},
        {"accepted_tokens": math.nan}, {"max_batch": 5000}, {"mode": "static", "concurrency": 4},
        {"mode": "sometimes"},
    ],
)  # fmt: skip
def test_what_cannot_be_served_is_refused(asked: dict[str, object]) -> None:
    with pytest.raises(InputError) as caught:
        ServingOptions(**asked).on(Serving(max_batch=1024))  # type: ignore[arg-type]
    assert caught.value.remedy
