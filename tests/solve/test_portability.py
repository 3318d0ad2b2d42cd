"""Answers stay within what an engine computes (docs/architecture.md)."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest

from puzzle_search.arch import ArchitectureSpec, Experts, SearchSpace
from puzzle_search.cost import OperatingPoint
from puzzle_search.errors import InfeasibleError, InputError
from puzzle_search.solve import ChildLimits, Limits, Workload, formulate, solve
from puzzle_search.solve.problem.engine_limits import markdown_table
from puzzle_search.solve.problem.portability import (
    allows,
    allows_as_built,
    check_exportable,
    verdicts,
)
from tests.pico import ROOT
from tests.solve.helpers import random_scores, table_of, tiny_config

CONFIG = tiny_config(4, intermediate_size=512)
ATTENTION, FFN = ["gqa_4", "gqa_1", "linear", "no_op"], ["mlp_512", "mlp_256", "linear", "no_op"]
# By engine: (attention, ffn, layer) that it computes neither as it is nor by a form next to free.
REFUSED = {
    "trtllm": lambda a, f, n: False,
    "vllm": lambda a, f, n: a == "linear" or f == "linear" or (a == "no_op" and n == 0),
    "vllm-plugin": lambda a, f, n: False,
    "sglang": lambda a, f, n: (
        a in ("linear", "gqa_1") or f == "linear" or (a == "no_op" and n == 0)
    ),
    "llama.cpp": lambda a, f, n: a == "no_op" and n == 0,
    "mlx-lm": lambda a, f, n: False,
    "transformers": lambda a, f, n: False,
}


@pytest.mark.parametrize("engine", REFUSED)
def test_rules(engine: str) -> None:
    for a, f, n in itertools.product(ATTENTION, FFN, range(4)):
        assert allows(engine, a, f, n, CONFIG) is not REFUSED[engine](a, f, n), (a, f, n)


OWN_CLASS = ("transformers", "vllm-plugin")
QWEN3 = dataclasses.replace(CONFIG, model_type="qwen3", qk_norm=True)
QWEN2 = dataclasses.replace(CONFIG, model_type="qwen2", qkv_bias=True)


@pytest.mark.parametrize("engine", ["vllm", "llama.cpp", "mlx-lm"])
def test_children_of_parents_with_norms_keep_blocks_or_leave_them_out(engine: str) -> None:
    allowed = {
        (a, f) for a, f in itertools.product(ATTENTION, FFN) if allows(engine, a, f, 1, QWEN3)
    }
    assert allowed == {(CONFIG.attention, CONFIG.ffn), ("no_op", "no_op")}
    assert not any(allows("trtllm", a, f, 1, QWEN3) for a, f in itertools.product(ATTENTION, FFN))


def test_biases_on_three_of_four_are_no_matter_where_zeros_are_written() -> None:
    assert allows("vllm", "gqa_1", "mlp_256", 1, QWEN2)
    assert not allows_as_built("vllm", "gqa_1", "mlp_256", 1, QWEN2)
    assert not allows("sglang", "gqa_4", "mlp_512", 1, QWEN2)


def test_verdicts_on_a_whole_child() -> None:
    pairs = [("no_op", "no_op"), ("no_op", "mlp_256"), ("linear", "linear"), ("gqa_4", "no_op")]
    told = {v.engine: v for v in verdicts(ArchitectureSpec.of("tiny", pairs), CONFIG)}
    assert {name for name, v in told.items() if v.as_built} == {"trtllm", "vllm-plugin"}
    not_exported = {name for name, v in told.items() if not v.exported}
    assert not_exported == {"trtllm", "sglang", "vllm-plugin"}
    assert "linear FFN in block 2 (refused)" in told["sglang"].reasons
    nothing = ArchitectureSpec.of("tiny", [("no_op", "mlp_256")] * 4)
    with pytest.raises(InputError, match="no attention in any block"):
        check_exportable("mlx-lm", nothing, CONFIG)


def test_transformers_loads_what_is_exported_for_it_alone() -> None:
    same = ArchitectureSpec.identity(CONFIG)
    for verdict in verdicts(same, CONFIG):
        assert verdict.as_built is (verdict.engine != "transformers")
    assert not allows_as_built("transformers", CONFIG.attention, CONFIG.ffn, 1, CONFIG)


def test_the_docs_have_the_table() -> None:
    text = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    shown = text.split("<!-- engine limits -->\n")[1].split("<!-- end of engine limits -->")[0]
    assert shown == markdown_table()


@pytest.mark.parametrize("engine", REFUSED)
def test_answers_are_portable(engine: str) -> None:
    space = SearchSpace.uniform(CONFIG, attention=ATTENTION, ffn=FFN)
    table = table_of(CONFIG, space, [OperatingPoint(batch=4, tp=1)])
    scores = random_scores(CONFIG, space, np.random.default_rng(0))
    limits = Limits(memory_bytes=float(table.outside_memory_bytes[0]) + 1e5)
    try:
        answer = solve(
            formulate(
                CONFIG, space, scores, [Workload.on_device(table, limits)],
                ChildLimits(portable_to=engine),
            )
        )  # fmt: skip
    except InfeasibleError:
        assert engine == "sglang"
        return
    for n, block in enumerate(answer.spec.blocks):
        assert not REFUSED[engine](block.attention, block.ffn, n)


@pytest.mark.parametrize("engine", sorted(REFUSED.keys() - {"vllm-plugin"}))
def test_a_window_of_its_own_loads_in_no_stock_engine(engine: str) -> None:
    assert not allows(engine, "gqa_4_window_8", "mlp_512", 1, CONFIG)
    alike = ArchitectureSpec.of("tiny", [("gqa_4_window_8", "mlp_512")] * 4)
    [told] = [verdict for verdict in verdicts(alike, CONFIG) if verdict.engine == engine]
    assert not told.as_built
    assert not told.exported
    assert any("a sliding window of its own" in reason for reason in told.reasons)


@pytest.mark.parametrize("engine", REFUSED)
def test_weights_of_a_type_of_their_own_go_to_llama_cpp_alone(engine: str) -> None:
    takes = engine == "llama.cpp"
    for weights in ("q4_0", "fp8"):
        pair = ("gqa_4", f"mlp_512@{weights}")
        exported = takes and weights == "q4_0"
        assert allows(engine, *pair, 1, CONFIG) is exported
        spec = ArchitectureSpec.of("tiny", [pair] * 4)
        [told] = [verdict for verdict in verdicts(spec, CONFIG) if verdict.engine == engine]
        assert (told.as_built, told.exported) == (False, exported)
        assert exported or any(f"{weights}" in r or "GGUF" in r for r in told.reasons)
        if not exported:
            with pytest.raises(InputError, match=r"weights in .* of their own in block 0"):
                check_exportable(engine, spec, CONFIG)


def test_an_unknown_engine_is_refused() -> None:
    with pytest.raises(InputError, match="steam"):
        allows("steam", "gqa_4", "mlp_512", 0, CONFIG)


@pytest.mark.parametrize("engine", REFUSED)
def test_experts_load_nowhere_yet(engine: str) -> None:
    config = dataclasses.replace(CONFIG, experts=Experts(count=4, top_k=2, renormalised=True))
    assert not allows(engine, "gqa_4", "moe_4", 1, config)
    assert allows(engine, "gqa_4", "no_op", 1, config)
    told = {v.engine: v for v in verdicts(ArchitectureSpec.identity(config), config)}[engine]
    assert (told.as_built, told.exported) == (False, False)
    assert told.reasons == ("a mixture of experts in block 0 (refused)",)


@pytest.mark.parametrize("engine", REFUSED)
def test_widths_that_the_stock_format_cannot_say_need_a_class_of_ours(engine: str) -> None:
    config = tiny_config(4, intermediate_size=600)
    assert allows(engine, "gqa_4", "mlp_600", 1, config) is (engine in OWN_CLASS)
    assert allows(engine, "gqa_4", "mlp_512", 1, config)
