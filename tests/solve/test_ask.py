"""The whole question, by name: a published model, the shipped scores and an H100."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from puzzle_search.arch import ArchitectureSpec
from puzzle_search.cost.serving import ServingOptions
from puzzle_search.cost.step import Step
from puzzle_search.errors import InfeasibleError, InputError
from puzzle_search.solve import ChildLimits, Limits, Workload, solve
from puzzle_search.solve.question.answer import Answer
from puzzle_search.solve.question.ask import Question, ask
from puzzle_search.solve.question.fleet import ask_fleet, parse_offers
from tests.pico import ROOT, run_here

HIDDEN, HEADS, HEAD_DIM, VOCABULARY = 8192, 64, 128, 128256


def question(target: float, **changes: Any) -> Question:
    scenarios = [(changes.pop("scenario", "128/1024"), Limits(tokens_per_second_per_gpu=target))]
    return Question(scenarios=scenarios, **changes)


@pytest.fixture(scope="module")
def headline() -> Answer:
    return ask(question(6000))


@pytest.fixture(scope="module")
def printed(headline: Answer) -> dict[str, Any]:
    return json.loads(json.dumps(headline.as_dict(), allow_nan=False))


def test_the_answer_is_proven_and_keeps_its_limits(printed: dict[str, Any]) -> None:
    assert printed["status"] == "optimal"
    assert printed["gap"] == 0
    assert printed["bound"] == printed["score"] > 0
    (scenario,) = printed["scenarios"]
    assert scenario["tokens_per_second_per_gpu"] >= 6000
    assert scenario["memory_bytes"] <= scenario["memory_limit_bytes"] < 85e9


def test_predictions_carry_the_error_of_what_was_held_out(
    printed: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    engines = yaml.safe_load((ROOT / "cost_models" / "h100.yaml").read_text())["engines"]
    error = engines["trtllm"]["step"]["error_p90"]
    assert 0.05 < error < 0.5
    (scenario,) = printed["scenarios"]
    predicted = scenario["tokens_per_second_per_gpu"]
    low, high = scenario["tokens_per_second_per_gpu_interval"]
    assert (predicted - low) / low == pytest.approx(error, rel=1e-4)
    assert (high - predicted) / high == pytest.approx(error, rel=1e-4)
    run_here("solve", "--target-tps", "6000")
    assert f"128/1024: {low:,.0f} to {high:,.0f} tok/s/GPU" in capsys.readouterr().out
    # Constants that nothing was held against have no interval.
    (scenario,) = ask(question(6000, gpu="b200")).as_dict()["scenarios"]
    assert scenario["tokens_per_second_per_gpu_interval"] is None


def test_an_answer_that_wrecks_the_model_says_so_and_what_is_near(
    headline: Answer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert headline.ruin is None
    whole = ask(Question(goal="throughput", child=ChildLimits(score=1.0))).solution
    most = whole.cost.tokens_per_second_per_gpu
    assert whole.score <= 1
    # As fast as can be, whatever it costs: the limit that is missing is named.
    wrecked = ask(Question(goal="throughput"))
    assert wrecked.ruin is not None
    assert wrecked.ruin.score > 1
    [near] = wrecked.ruin.near
    assert near == f"{most:,.0f} tok/s/GPU, all limits kept, by a max score of 1"
    # Faster than the damage allows: how far the limit can be taken.
    asked = ask(question(1.2 * most))
    assert asked.ruin is not None
    [near] = asked.ruin.near
    reachable = re.fullmatch(r"at most ([\d.]+) tok/s/GPU, the other limits kept", near)
    assert reachable is not None
    assert float(reachable[1]) == pytest.approx(most, rel=1e-3)
    assert "falls apart" in asked.as_dict()["remarks"][0]
    # A metric of which no such level is known.
    assert ask(question(1.2 * most, metric="0.5*kl")).ruin is None
    run_here("solve", "--target-tps", str(1.2 * most))
    assert "note: score " in capsys.readouterr().out


def test_the_keys_of_the_answer(printed: dict[str, Any]) -> None:
    assert list(printed) == [
        "status", "score", "bound", "gap", "seconds", "architecture", "params",
        "kv_bytes_per_token", "scenarios", "prices", "evidence",
    ]  # fmt: skip
    assert list(printed["architecture"]) == ["parent", "blocks"]
    assert len(printed["architecture"]["blocks"]) == 80
    assert all(list(b) == ["attention", "ffn"] for b in printed["architecture"]["blocks"])
    assert list(printed["scenarios"][0]) == [
        "input_len", "output_len", "gpu", "tp", "batch", "in_flight", "tokens_per_second_per_gpu",
        "tokens_per_second_per_user", "ttft_ms", "tpot_ms", "memory_bytes", "memory_limit_bytes",
        "tokens_per_second_per_gpu_interval",
    ]  # fmt: skip
    assert list(printed["evidence"]) == ["scores", "cost"]
    assert (printed["scenarios"][0]["input_len"], printed["scenarios"][0]["output_len"]) == (
        128,
        1024,
    )


def test_parameters_and_kv_cache_by_hand(printed: dict[str, Any]) -> None:
    params = 2 * VOCABULARY * HIDDEN + HIDDEN
    kv_heads = 0
    for block in printed["architecture"]["blocks"]:
        if match := re.fullmatch(r"gqa_(\d+)", block["attention"]):
            own = int(match[1])
            kv_heads += own
            params += 2 * HIDDEN * HEADS * HEAD_DIM + 2 * HIDDEN * own * HEAD_DIM + HIDDEN
        elif block["attention"] == "linear":
            params += HIDDEN * HIDDEN + HIDDEN
        if match := re.fullmatch(r"mlp_(\d+)", block["ffn"]):
            params += 3 * HIDDEN * int(match[1]) + HIDDEN
        elif block["ffn"] == "linear":
            params += HIDDEN * HIDDEN + HIDDEN
    assert printed["params"] == params
    assert printed["kv_bytes_per_token"] == kv_heads * 2 * HEAD_DIM  # fp8


def test_throughput_by_a_sum_over_every_step() -> None:
    limits = Limits(tokens_per_second_per_gpu=6000)
    static = ServingOptions(mode="static")
    solution = ask(Question(scenarios=[("128/1024", limits)], serving=static)).solution
    cost, latency = solution.cost, solution.problem.workloads[0].table.target.latency
    batch, tp = cost.point.batch, cost.point.tp
    names = [("attention", b.attention) for b in solution.spec.blocks]
    names += [("ffn", b.ffn) for b in solution.spec.blocks]

    def step_us(asked: Step) -> float:
        total = latency.outside_us(asked)
        for key in set(names):
            total = total + names.count(key) * latency.subblock_us(*key, asked)  # type: ignore[arg-type]
        return float(total)

    # Chunks of 8,192 tokens hold 64 prompts of 128.
    chunks = [64] * (batch // 64) + [batch % 64] * (batch % 64 > 0)
    prefill = sum(step_us(Step.of(tp=tp, prompts=n, prompt_tokens=128)) for n in chunks)
    decode = sum(
        step_us(Step.of(tp=tp, decoding=batch, decode_context=context))
        for context in range(129, 128 + 1024)
    )
    assert cost.ttft_ms == pytest.approx(prefill / 1e3, rel=1e-9)
    assert cost.tokens_per_second_per_gpu == pytest.approx(
        batch * 1024 / (prefill + decode) * 1e6 / tp, rel=0.005
    )


def test_the_spec_reads_back(headline: Answer, tmp_path: Path) -> None:
    file = tmp_path / "child.yaml"
    headline.spec.write(file)
    read = ArchitectureSpec.from_file(file)
    assert read.blocks == headline.spec.blocks
    assert read.parent == "llama-3.1-70b"
    assert read.solution == headline.spec.solution
    assert read.solution["status"] == "optimal"
    assert read.solution["asked"]["scenarios"] == [
        {"scenario": "128/1024", "limits": {"tokens_per_second_per_gpu": 6000}}
    ]
    read.check_fits(headline.config)


def test_a_higher_target_never_scores_lower(headline: Answer) -> None:
    problem, scores = headline.solution.problem, []
    for target in (1000, 6000, 9000):
        workload = Workload.on_device(
            problem.workloads[0].table, Limits(tokens_per_second_per_gpu=target)
        )
        answer = solve(dataclasses.replace(problem, workloads=(workload,)))
        assert answer.cost.tokens_per_second_per_gpu >= target
        scores.append((answer.bound, answer.score))
    for (_, low), (_, high) in itertools.pairwise(scores):
        assert low <= high * (1 + 1e-9)
    assert scores[0][1] < scores[1][1] < scores[2][1]


def test_every_tp_degree_is_tried() -> None:
    # The parent's KV cache has no room beside its weights on one device.
    one = ask(question(2000), max_seconds=20)
    answer = ask(question(2000, tp="any"), max_seconds=20)
    assert answer.solution.score <= one.solution.score * (1 + 1e-9)
    assert answer.solution.cost.point.tp in (1, 2, 4, 8)
    assert answer.solution.cost.tokens_per_second_per_gpu >= 2000
    assert {p.tp for p in answer.solution.problem.workloads[0].table.points} == {1, 2, 4, 8}


def test_the_impossible_says_what_is_reachable() -> None:
    with pytest.raises(InfeasibleError, match="at most") as caught:
        ask(question(1e9))
    reachable = float(re.search(r"at most ([\d.e+]+) tok/s/GPU", caught.value.message)[1])  # type: ignore[index]
    assert 10_000 < reachable < 1e9
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"model": "gpt-5"}, "gpt-5"),
        ({"gpu": "abacus"}, "abacus"),
        ({"engine": "steam"}, "steam"),
        ({"dtype": "int3"}, "int3"),
        ({"tp": "3"}, "3"),
        ({"tp": ""}, "tp"),
        ({"tp": "1,,2"}, "1,,2"),
        ({"tp": "all"}, "all"),
        ({"scenario": "128"}, "128"),
        ({"scenario": "0/10"}, "0/10"),
        ({"scenario": "128/-1"}, "128/-1"),
        ({"metric": "joy"}, "joy"),
        ({"scores": "absent.csv"}, "absent.csv"),
    ],
)
def test_what_is_not_known_is_named_with_a_remedy(wrong: dict[str, str], named: str) -> None:
    with pytest.raises(InputError) as caught:
        ask(question(6000, **wrong))
    assert named in caught.value.message
    assert caught.value.remedy


@pytest.mark.parametrize("value", [0, -1, float("nan")])
@pytest.mark.parametrize("name", [f.name for f in dataclasses.fields(Limits)])
def test_a_limit_is_above_zero(name: str, value: float) -> None:
    with pytest.raises(InputError, match=name):
        Limits(**{name: value})  # type: ignore[arg-type]


def test_nemotron_51b_is_no_better_than_the_answer(headline: Answer, shared_data: Path) -> None:
    file = shared_data / "nemotron" / "Llama-3_1-Nemotron-51B-Instruct.json"
    if not file.exists():
        pytest.skip("no published architecture beside this checkout")
    pairs = [
        (
            f"gqa_{layer['num_kv_heads']}" if layer["attn"] == "gqa" else layer["attn"],
            f"mlp_{layer['intermediate_size']}",
        )
        for layer in json.loads(file.read_text())["layers"]
    ]
    problem = headline.solution.problem
    table = problem.workloads[0].table
    published = ArchitectureSpec.of("llama-3.1-70b", pairs)
    own = table.best_cost(published)
    assert own is not None
    limits = Limits(
        tokens_per_second_per_gpu=own.tokens_per_second_per_gpu, memory_bytes=own.memory_bytes
    )
    workload = Workload.on_device(table, limits)
    answer = solve(dataclasses.replace(problem, workloads=(workload,)))
    damage = problem.score(problem.selection(published))
    assert answer.score <= damage * (1 + 1e-12)
    assert answer.bound <= damage
    assert answer.cost.memory_bytes <= own.memory_bytes
    assert answer.cost.tokens_per_second_per_gpu >= own.tokens_per_second_per_gpu


def test_another_back_end_gives_the_same_answer() -> None:
    scip, highs = (ask(question(6000), backend=name).solution for name in ("scip", "highs"))
    assert highs.status == scip.status == "optimal"
    assert highs.score == pytest.approx(scip.score, rel=1e-9)


def test_an_unknown_back_end_is_refused() -> None:
    with pytest.raises(InputError, match="cplex"):
        ask(question(6000), backend="cplex")  # type: ignore[arg-type]


def test_gpus_that_are_not_known_are_named_as_such() -> None:
    for prices in ("foo,bar", "foo=1,bar=2"):
        with pytest.raises(InputError, match="none of these GPUs can be used") as caught:
            ask_fleet(Question(), parse_offers(prices))
        assert "foo" in caught.value.message
        assert "bar" in caught.value.message
        assert "loosen" not in caught.value.remedy
