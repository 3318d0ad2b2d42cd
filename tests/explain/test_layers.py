"""Explanations and comparisons against arithmetic written out, and against published children."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from puzzle_search.arch import ArchitectureSpec, BlockChoice
from puzzle_search.cost import OperatingPoint, Scenario, Target, parse_dtype
from puzzle_search.cost.serving import Serving
from puzzle_search.cost.step import Step
from puzzle_search.errors import InputError
from puzzle_search.explain.compare import compare
from puzzle_search.explain.layers import explain
from puzzle_search.solve import ScoreTable
from puzzle_search.solve.question.setting import AskedSetting, Setting, find_setting
from tests.solve.helpers import SIDECAR, rows_of, tiny_config

MICROSECONDS = {
    "gqa_4": 8.0, "gqa_2": 4.0, "linear": 1.0, "no_op": 0.0, "mlp_64": 6.0, "mlp_32": 3.0
}  # fmt: skip
OUTSIDE_US = 2.0
CHILD = [("gqa_4", "mlp_64"), ("gqa_2", "mlp_64"), ("no_op", "mlp_32"), ("linear", "no_op")]


class FlatLatency:
    """Microseconds by variant, times the batch; outside the blocks the same for every batch."""

    evidence = "measured"

    def subblock_us(self, subblock: str, variant: str, step: Step) -> np.ndarray:
        return MICROSECONDS[variant] * (step.decoding + step.prompts)

    def outside_us(self, step: Step) -> np.ndarray:
        return np.full(step.shape, OUTSIDE_US)


def setting(memory_limit_bytes: int = 10**9, **changes: Any) -> Setting:
    values = {
        (1, "gqa_2", ""): 0.25, (2, "no_op", ""): 1.0, (2, "", "mlp_32"): 0.5,
        (3, "linear", "no_op"): 2.0,
    }  # fmt: skip
    given: dict[str, Any] = {
        "config": tiny_config(),
        "scores": ScoreTable(rows_of(values), SIDECAR),
        "metric": "kl",
        "target": Target(
            gpu="abacus",
            engine="test",
            latency=FlatLatency(),
            memory_limit_bytes=memory_limit_bytes,
            dtype=parse_dtype("bf16"),
            batches=(1, 2),
            tp_degrees=(1,),
            serving=Serving(mode="static"),
        ),
        "scenarios": (Scenario.parse("16/9"),),
        "tp_degrees": (1,),
        "recorded": {},
    }
    return Setting(**given | changes)


def test_each_block_saves_what_its_variants_do_not_cost() -> None:
    explained = explain(ArchitectureSpec.of("tiny", CHILD), setting())
    same, shared, dropped, last = explained.blocks
    # Batch 2; prefill and 8 decode steps. Bytes: bf16 weights, norm, and KV of 2 x 25 tokens.
    assert explained.child[0].point == OperatingPoint(batch=2, tp=1)
    assert (same.saved_us, same.saved_bytes, same.saved_parameters, same.damage) == (0, 0, 0, 0)
    assert same.unchanged
    assert shared.saved_us == pytest.approx((8 - 4) * 2 * 9)
    assert shared.saved_bytes == 2 * 1024 + 2 * 2 * 8 * 2 * 50
    assert shared.saved_parameters == 1024  # K and V of 2 heads of 8, times 32
    assert shared.damage == 0.25
    assert (shared.attention.change, shared.attention.size) == ("reduced", 2)
    assert (shared.attention.fraction, shared.ffn.change) == (0.5, "kept")
    assert dropped.saved_us == pytest.approx((8 + 3) * 2 * 9)
    assert dropped.saved_parameters == 4 * 32 * 32 + 32 + 3 * 32 * 32
    assert dropped.damage == 1.5
    assert (dropped.attention.change, dropped.ffn.fraction) == ("dropped", 0.5)
    assert last.damage == 2.0
    assert (last.attention.change, last.ffn.change) == ("linear", "dropped")
    assert last.saved_parameters == 4 * 32 * 32 - 32 * 32 + 3 * 32 * 64 + 32

    [child], [parent] = explained.child, explained.parent
    assert parent is not None
    per_step = 8 + 6 + 4 + 6 + 3 + 1
    assert child.ttft_ms == pytest.approx((2 * per_step + OUTSIDE_US) / 1e3)
    assert parent.ttft_ms == pytest.approx((2 * 4 * 14 + OUTSIDE_US) / 1e3)
    assert explained.kv_bytes_per_token == (4 * 128, 128 + 64)
    assert explained.as_dict()["score"] == 3.75
    assert json.dumps(explained.as_dict())


def test_savings_add_up_to_the_difference_of_the_totals() -> None:
    held = setting(recorded={Scenario.parse("16/9"): OperatingPoint(batch=1, tp=1)})
    explained = explain(ArchitectureSpec.of("tiny", CHILD), held)
    assert explained.child[0].point.batch == 1  # where it was solved for, not its best
    whole = ArchitectureSpec.identity(held.config)
    parent = explain(whole, held)
    saved_us = sum(block.saved_us for block in explained.blocks)
    difference_ms = parent.child[0].latency_ms - explained.child[0].latency_ms
    assert saved_us == pytest.approx(difference_ms * 1e3)
    saved_bytes = sum(block.saved_bytes for block in explained.blocks)
    assert saved_bytes == parent.child[0].memory_bytes - explained.child[0].memory_bytes
    before, after = explained.parameters
    assert sum(block.saved_parameters for block in explained.blocks) == before - after


def test_a_block_may_stand_for_several_layers() -> None:
    blocks = (
        BlockChoice(attention="gqa_4", ffn="mlp_64", layers=(0, 1, 2)),
        BlockChoice(attention="gqa_4", ffn="mlp_64", layers=(3,)),
    )
    spec = ArchitectureSpec(parent="tiny", blocks=blocks)
    first = explain(spec, setting()).blocks[0]
    assert not first.unchanged
    assert first.damage is None  # the score table has single layers
    assert first.saved_us == pytest.approx(2 * 14 * 2 * 9)
    assert first.saved_parameters == 2 * (4 * 32 * 32 + 3 * 32 * 64 + 2 * 32)
    comparison = compare(spec, ArchitectureSpec.identity(setting().config), setting())
    assert comparison.agreement == {"attention": 1, "ffn": 1}
    assert comparison.counts("ffn") == {"mlp_64": (2, 4)}


def test_damage_that_nobody_scored_is_not_known() -> None:
    spec = ArchitectureSpec.of("tiny", [("gqa_2", "mlp_64"), *CHILD[1:]])
    assert explain(spec, setting()).blocks[0].damage is None
    assert setting().score(spec) is None
    assert explain(spec, setting(scores=None)).as_dict()["evidence"]["scores"] is None


def test_a_parent_that_does_not_fit_has_no_cost_and_a_child_must_fit() -> None:
    spec = ArchitectureSpec.of("tiny", [("no_op", "no_op")] * 4)
    explained = explain(spec, setting(memory_limit_bytes=40_000))
    assert explained.parent == (None,)
    assert explained.child[0].memory_bytes <= 40_000
    with pytest.raises(InputError, match="fits abacus at no batch size"):
        explain(spec, setting(memory_limit_bytes=1000))


def test_a_comparison_counts_layers_and_variants() -> None:
    first = ArchitectureSpec.of("tiny", CHILD)
    second = ArchitectureSpec.of("tiny", [CHILD[0], ("gqa_2", "mlp_32"), *CHILD[2:]])
    comparison = compare(first, second, setting())
    assert comparison.agreement == {"attention": 4, "ffn": 3}
    assert [difference.layer for difference in comparison.differences] == [1]
    assert list(comparison.counts("attention").items()) == [
        ("gqa_4", (1, 1)), ("gqa_2", (1, 1)), ("linear", (1, 1)), ("no_op", (1, 1))
    ]  # fmt: skip
    assert comparison.counts("ffn") == {"mlp_64": (2, 1), "mlp_32": (1, 2), "no_op": (1, 1)}
    assert comparison.parameters[0] - comparison.parameters[1] == 3 * 32 * 32
    assert comparison.scores == (3.75, None)  # layer 1 was not scored with mlp_32
    [(one, other)] = comparison.costs.values()
    assert one is not None
    assert other is not None
    assert one.ttft_ms - other.ttft_ms == pytest.approx(2 * 3 / 1e3)
    assert json.dumps(comparison.as_dict())


def test_specs_of_other_parents_are_compared_only_on_demand() -> None:
    first, second = ArchitectureSpec.of("tiny", CHILD), ArchitectureSpec.of("small", CHILD)
    with pytest.raises(InputError, match="'tiny', of the second 'small'"):
        compare(first, second, setting())
    assert compare(first, second, setting(), any_parent=True).differences == ()
    with pytest.raises(InputError, match="covers 4 layers, the second 3"):
        compare(first, ArchitectureSpec.of("tiny", CHILD[:3]), setting())
    with pytest.raises(InputError, match="gqa_8 does not fit"):
        compare(first, ArchitectureSpec.of("tiny", [("gqa_8", "no_op")] * 4), setting())


SOLVED = {
    "scenarios": [{"input_len": 64, "output_len": 32, "gpu": "h100", "tp": 2, "batch": 3}],
    "asked": {"model": "llama-3.1-70b", "gpu": "h100", "engine": "trtllm", "dtype": "bf16"},
}


def test_what_is_not_asked_is_what_the_spec_was_solved_for() -> None:
    pairs = [("gqa_8", "mlp_28672")] * 80
    spec = ArchitectureSpec.of("some-parent", pairs, **SOLVED)
    held = find_setting([spec])
    assert held.config.name == "llama-3.1-70b"
    assert held.target.dtype.name == "bf16"
    assert held.tp_degrees == (2,)
    scenario = Scenario.parse("64/32")
    assert held.recorded == {scenario: OperatingPoint(batch=3, tp=2)}
    assert explain(spec, held).child[0].point == OperatingPoint(batch=3, tp=2)

    otherwise = find_setting([spec], AskedSetting(dtype="fp8", tp="any"))
    assert otherwise.scenarios == (scenario,)
    assert otherwise.tp_degrees == (1, 2, 4, 8)
    assert otherwise.recorded == {}

    plain = find_setting([ArchitectureSpec.of("llama-3.1-70b", pairs)])
    assert [str(s) for s in plain.scenarios] == ["128/1024"]
    assert (plain.target.gpu, plain.target.dtype.name, plain.tp_degrees) == ("h100", "fp8", (1,))


@pytest.mark.parametrize(
    "solution",
    [
        {"scenarios": [{"input_len": 64}]},
        {"scenarios": 5},
        {"scenarios": [SOLVED["scenarios"][0] | {"batch": "3"}]},
        {"asked": "h100"},
    ],
)
def test_a_damaged_solution_is_refused(solution: dict[str, Any]) -> None:
    spec = ArchitectureSpec.of("llama-3.1-70b", [("gqa_8", "no_op")] * 80, **solution)
    with pytest.raises(InputError, match=r"solution\.(scenarios|asked)"):
        find_setting([spec])


def published(shared_data: Path, name: str) -> tuple[dict[str, Any], ArchitectureSpec]:
    child = json.loads((shared_data / "nemotron" / f"{name}.json").read_text())
    pairs = [
        (
            layer["attn"] if layer["attn"] != "gqa" else f"gqa_{layer['num_kv_heads']}",
            f"mlp_{layer['intermediate_size']}",
        )
        for layer in child["layers"]
    ]
    return child, ArchitectureSpec.of(child["parent"], pairs)


def test_published_children_side_by_side(shared_data: Path) -> None:
    facts_51b, child_51b = published(shared_data, "Llama-3_1-Nemotron-51B-Instruct")
    facts_49b, child_49b = published(shared_data, "Llama-3_3-Nemotron-Super-49B-v1")
    held = find_setting([child_51b], AskedSetting(model="llama-3.1-70b"))
    explained = explain(child_51b, held)
    assert explained.parameters[1] == facts_51b["total_params"]
    assert explained.kv_bytes_per_token[1] == facts_51b["kv_bytes_per_token_fp8"]
    histogram = facts_51b["attn_histogram"]
    changes = [block.attention.change for block in explained.blocks]
    assert changes.count("kept") == histogram["gqa_kv8"]
    assert changes.count("linear") == histogram["linear"]
    assert changes.count("dropped") == histogram["no_op"]
    assert [cost.tokens_per_second_per_gpu > 3000 for cost in explained.child] == [True]

    comparison = compare(child_51b, child_49b, held, any_parent=True)
    layers = list(zip(facts_51b["layers"], facts_49b["layers"], strict=True))
    assert comparison.agreement["ffn"] == sum(
        a["intermediate_size"] == b["intermediate_size"] for a, b in layers
    )
    assert comparison.agreement["attention"] == sum(
        (a["attn"], a["num_kv_heads"]) == (b["attn"], b["num_kv_heads"]) for a, b in layers
    )
    assert comparison.parameters == (facts_51b["total_params"], facts_49b["total_params"])
    assert comparison.counts("attention")["no_op"] == (8, 31)
