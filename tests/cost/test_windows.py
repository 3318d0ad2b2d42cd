"""Parents with a sliding window: neither KV cache nor time grows beyond it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from puzzle_search.arch import (
    ArchitectureSpec,
    Gqa,
    ParentConfig,
    SearchSpace,
    mean_kv_values_per_token,
)
from puzzle_search.cost import CostTable, OperatingPoint, Profile, Scenario, Target, parse_dtype
from puzzle_search.cost.measured.work import subblock_work
from puzzle_search.cost.memory import kv_bytes
from puzzle_search.cost.modelled.analytic import AnalyticLatency
from puzzle_search.cost.modelled.hardware import load_cost_model
from puzzle_search.cost.modelled.target import modelled_target
from puzzle_search.cost.pricing import build_cost_table
from puzzle_search.cost.serving import ServingOptions
from puzzle_search.cost.simulation import Load, simulate
from puzzle_search.cost.step import Step, mean_within
from puzzle_search.solve import Limits, ScoreRow, ScoreTable, Workload, formulate, solve
from puzzle_search.solve.question.setting import AskedSetting, find_setting
from tests.arch.configs import CONFIGS
from tests.cost.synthetic_profile import RAW, whole_profile
from tests.solve.helpers import SIDECAR

WINDOW = 4096
RAW_MISTRAL = CONFIGS["Mistral-7B-v0.1"]
MISTRAL = ParentConfig.from_dict(RAW_MISTRAL, name="mistral")
FULL = ParentConfig.from_dict(RAW_MISTRAL | {"sliding_window": None}, name="full")
H100 = load_cost_model("h100")
SPEC = ArchitectureSpec.identity(MISTRAL)
LENGTHS = st.integers(1, 30_000)


def latency(config: ParentConfig) -> AnalyticLatency:
    return AnalyticLatency(config, H100, "trtllm", "fp8")


def attention_us(config: ParentConfig, **sizes: Any) -> float:
    return float(latency(config).subblock_us("attention", "gqa_8", Step.of(tp=1, **sizes)))


def target(config: ParentConfig, **serving: Any) -> Target:
    asked = ServingOptions(**serving)
    return modelled_target(H100, config, engine="trtllm", dtype="fp8", serving=asked)


def table(config: ParentConfig, scenario: str, batch: int = 8, **serving: Any) -> CostTable:
    return build_cost_table(
        config, target(config, **serving), Scenario.parse(scenario),
        [OperatingPoint(batch=batch, tp=1)], attention=["gqa_8"], ffn=["mlp_14336"],
    )  # fmt: skip


@given(st.integers(1, 300), st.integers(0, 200), st.integers(1, 400))
def test_the_mean_within_a_window_is_that_of_the_tokens_one_by_one(
    tokens: int, before: int, window: int
) -> None:
    positions = np.arange(before + 1, before + tokens + 1)
    step = Step.of(tp=1, prompts=1, prompt_tokens=tokens, prompt_context=before + tokens)
    # Half tokens at both sides of the window's end: an eighth of a token in all.
    assert step.prompt_attended(window) * tokens == pytest.approx(
        np.minimum(positions, window).sum(), abs=0.125 + 1e-9
    )
    assert step.prompt_attended(None) * tokens == pytest.approx(positions.sum())
    assert step.prompt_history(window) == min(before, window - 1)


@pytest.mark.parametrize(("mean", "spread", "window"), [(50, 100, 30), (50, 10, 50), (9, 0, 4)])
def test_the_mean_within_a_window_by_sampling(mean: float, spread: float, window: int) -> None:
    lengths = mean + spread * (np.arange(100_000) + 0.5) / 100_000 - spread / 2
    expected = np.minimum(lengths, window).mean()
    assert mean_within(mean, spread, window) == pytest.approx(expected, rel=1e-6)


def test_pieces_of_a_prompt_attend_to_as_much_as_the_whole_prompt() -> None:
    """In flight, a mean piece stands for all of a prompt."""
    pieces, tokens = 4, 2048
    ends = tokens * (np.arange(pieces) + 1)
    mean = Step.of(
        tp=1, prompts=1, prompt_tokens=tokens, prompt_context=ends.mean(),
        prompt_spread=ends[-1] - ends[0],
    )  # fmt: skip
    each = Step.of(tp=1, prompts=1, prompt_tokens=tokens, prompt_context=ends)
    for window in (None, 1000, 3000, 5000, 10**6):
        expected = each.prompt_attended(window).mean()
        assert mean.prompt_attended(window) == pytest.approx(expected, rel=1e-4)


def test_kv_memory_is_the_closed_form() -> None:
    fp8 = parse_dtype("fp8")
    (variant,) = {block.attention_variant for block in SPEC.blocks}
    of_token = 2 * 8 * 128
    for tokens in (1, 4095, 4096, 4097, 8704):
        assert kv_bytes(variant, FULL, fp8, 1, tokens) == of_token * tokens
        assert kv_bytes(variant, MISTRAL, fp8, 1, tokens) == of_token * min(tokens, WINDOW)
    windowed, full = (table(config, "8192/512") for config in (MISTRAL, FULL))
    saved = full.attention.memory_bytes - windowed.attention.memory_bytes
    assert float(saved.item()) == 8 * of_token * (8704 - WINDOW)


def test_kv_bytes_per_token_are_those_of_the_request() -> None:
    per_token = 32 * 2 * 8 * 128
    assert mean_kv_values_per_token(SPEC, FULL, 8704) == per_token
    assert mean_kv_values_per_token(SPEC, MISTRAL, 4096) == per_token
    assert mean_kv_values_per_token(SPEC, MISTRAL, 8192) == per_token / 2


@given(LENGTHS, LENGTHS, st.integers(1, 512))
def test_law_decode_beyond_the_window_costs_what_it_costs_at_it(
    first: int, second: int, batch: int
) -> None:
    at = [
        attention_us(MISTRAL, decoding=batch, decode_context=WINDOW + more)
        for more in (0, first, second)
    ]
    assert at[0] == at[1] == at[2]
    assert at[0] == attention_us(FULL, decoding=batch, decode_context=WINDOW)


@given(st.integers(1, 8192), LENGTHS, LENGTHS)
def test_law_a_history_beyond_the_window_costs_nothing_more(
    tokens: int, first: int, second: int
) -> None:
    at = [
        attention_us(
            MISTRAL, prompts=1, prompt_tokens=tokens, prompt_context=WINDOW + tokens + more
        )
        for more in (first, second)
    ]
    assert at[0] == pytest.approx(at[1], rel=1e-12)


@given(st.integers(1, 4000), st.integers(1, 64))
def test_law_within_the_window_nothing_changes(context: int, batch: int) -> None:
    for sizes in (
        {"decoding": batch, "decode_context": context},
        {"prompts": batch, "prompt_tokens": context},
        {"prompts": 1, "prompt_tokens": 1, "prompt_context": context},
    ):
        assert attention_us(MISTRAL, **sizes) == attention_us(FULL, **sizes)


@given(st.integers(WINDOW, 20_000), st.integers(1, 8000), st.integers(1, 64))
def test_law_longer_prompts_cost_no_more_kv_nor_decode_time(
    prompt: int, more: int, batch: int
) -> None:
    one, other = (
        table(MISTRAL, f"{length}/100", batch, mode="static") for length in (prompt, prompt + more)
    )
    assert np.array_equal(one.attention.memory_bytes, other.attention.memory_bytes)
    assert np.allclose(one.attention.decode_us, other.attention.decode_us, rtol=1e-12)


@pytest.mark.parametrize("mode", ["static", "in-flight"])
def test_a_window_makes_long_requests_cheaper_and_short_ones_not(mode: str) -> None:
    for scenario, cheaper in (("1024/1024", False), ("8192/512", True), ("3000/4000", True)):
        windowed, full = (
            table(config, scenario, 32, mode=mode, max_tokens=2048) for config in (MISTRAL, FULL)
        )
        assert (windowed.attention.total_us < full.attention.total_us).all() == cheaper
        assert np.array_equal(windowed.ffn.total_us, full.ffn.total_us)


@pytest.mark.parametrize("scenario", ["3000/4000", "8192/512"])
def test_a_simulation_finds_the_steady_state_of_a_window(scenario: str) -> None:
    """Requests on both sides of the window's end: neither mean length nor ends would do."""
    expected = table(MISTRAL, scenario, 32).cost(SPEC, 0)
    seen = simulate(
        SPEC, target(MISTRAL), Scenario.parse(scenario), Load(concurrency=32, requests=300),
        batch=32, tp=1,
    )  # fmt: skip
    assert seen.tokens_per_second == pytest.approx(expected.tokens_per_second_per_gpu, rel=0.03)
    assert seen.tpot_ms.p50 == pytest.approx(expected.tpot_ms, rel=0.03)


def test_the_least_work_of_a_window_is_what_it_lets_attend() -> None:
    config = ParentConfig.from_dict(RAW_MISTRAL | {"sliding_window": 100}, name="narrow")
    (variant,) = {block.attention_variant for block in SPEC.blocks}
    dtype = parse_dtype("bf16")
    _, attention, _ = subblock_work(
        variant, config, dtype, batch=2, tokens=30, context=1000, tp=1
    )  # fmt: skip
    assert attention.flops == 4 * 2 * 30 * 32 * 128 * 100
    assert attention.moved_bytes == 2 * (30 + 99) * 2 * 8 * 128 * 2


def test_a_profile_serves_contexts_beyond_the_window_at_its_price() -> None:
    """Measured to 300 tokens; what attends to 200 is known for any context."""
    raw = RAW | {"model_type": "mistral", "sliding_window": 200}
    plain, windowed = whole_profile(), whole_profile(parent_config=raw)

    def us(profile: Profile, **sizes: Any) -> float:
        return float(profile.subblock_us("attention", "gqa_2", Step.of(tp=1, **sizes)))

    for context in (200, 300, 3000):
        beyond = us(windowed, decoding=4, decode_context=context)
        assert beyond == us(plain, decoding=4, decode_context=200)
    assert us(windowed, decoding=4, decode_context=150) == us(plain, decoding=4, decode_context=150)
    for past in (199, 200, 3000):
        beyond = us(windowed, prompts=1, prompt_tokens=100, prompt_context=100 + past)
        assert beyond == us(plain, prompts=1, prompt_tokens=100, prompt_context=100 + 199)
    assert not windowed.covers([("attention", "gqa_2")], Step.of(tp=1, decoding=100)).all()


def test_explain_tells_the_cache_of_the_request(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(RAW_MISTRAL))
    asked = AskedSetting(model=str(tmp_path), gpu="h100", scenarios=("8192/512",), dtype="fp8")
    per_token = 32 * 2 * 8 * 128
    assert find_setting([SPEC], asked).kv_bytes_per_token(SPEC) == -(-per_token * WINDOW // 8704)


def test_a_variant_with_a_window_is_priced_as_a_parent_with_it() -> None:
    priced, dtype = latency(FULL), parse_dtype("fp8")
    for sizes in (
        {"decoding": 16, "decode_context": 20_000},
        {"prompts": 2, "prompt_tokens": 3000, "prompt_context": 9000},
        {"prompts": 1, "prompt_tokens": 8192},
    ):
        step = Step.of(tp=1, **sizes)  # type: ignore[arg-type]
        narrowed = priced.subblock_us("attention", f"gqa_8_window_{WINDOW}", step)
        assert narrowed == latency(MISTRAL).subblock_us("attention", "gqa_8", step)
        assert narrowed < priced.subblock_us("attention", "gqa_8", step)
    for tokens in (100, 4096, 20_000):
        of_variant = kv_bytes(Gqa(2, WINDOW), FULL, dtype, 1, tokens)
        assert of_variant == kv_bytes(Gqa(2), MISTRAL, dtype, 1, tokens)


@given(st.integers(16, 8192), st.integers(16, 8192), st.integers(1, 64))
def test_law_a_wider_window_keeps_no_less_kv(first: int, second: int, batch: int) -> None:
    narrow, wide = sorted((first, second))
    names = [f"gqa_8_window_{narrow}", f"gqa_8_window_{wide}", "gqa_8"]
    costs = build_cost_table(
        FULL, target(FULL), Scenario.parse("8192/512"), [OperatingPoint(batch=batch, tp=1)],
        attention=names, ffn=["mlp_14336"],
    )  # fmt: skip
    held = costs.attention.memory_bytes[0]
    assert held[0] <= held[1] <= held[2]
    assert held[2] - held[1] == batch * 2 * 8 * 128 * (8704 - wide)


def test_the_solver_takes_windows_where_they_cost_least_quality() -> None:
    """Half of the layers shall forget: those that lose least by it, as a sum says by itself."""
    layers, window = 4, "gqa_8_window_512"
    config = ParentConfig.from_dict(RAW_MISTRAL | {"num_hidden_layers": layers}, name="short")
    space = SearchSpace.uniform(config, attention=["gqa_8", window], ffn=["mlp_14336"])
    damage = [0.4, 0.1, 0.3, 0.2]
    rows = [
        ScoreRow(
            first_layer=n, last_layer=n, attention=window, ffn="", metric="kl", value=value,
            stderr=0.0, tokens=1,
        )
        for n, value in enumerate(damage)
    ]  # fmt: skip
    scores = ScoreTable(rows, SIDECAR | {"parent": "short"})
    costs = build_cost_table(
        config, target(config), Scenario.parse("8192/512"), [OperatingPoint(batch=32, tp=1)],
        attention=space.all_variants("attention"), ffn=space.all_variants("ffn"),
    )  # fmt: skip
    saved = 32 * 2 * 8 * 128 * (WINDOW - 512)
    whole = costs.of(ArchitectureSpec.identity(config)).memory_bytes[0]
    limits = Limits(memory_bytes=float(whole - 2 * saved))
    answer = solve(formulate(config, space, scores, [Workload.on_device(costs, limits)]))
    assert [block.attention == window for block in answer.spec.blocks] == [False, True, False, True]
