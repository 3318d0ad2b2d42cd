"""Answers stay within what the published code of an engine loads (docs/architecture.md)."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from puzzle_search.arch import SearchSpace
from puzzle_search.cost import OperatingPoint
from puzzle_search.errors import InfeasibleError, InputError
from puzzle_search.solve import ChildLimits, Limits, Workload, formulate, solve
from puzzle_search.solve.problem.portability import allows
from tests.solve.helpers import random_scores, table_of, tiny_config

CONFIG = tiny_config(4, intermediate_size=512)
ATTENTION, FFN = ["gqa_4", "gqa_1", "linear", "no_op"], ["mlp_512", "mlp_256", "linear", "no_op"]
# By engine: (attention, ffn, layer) that it does not load, from its table row.
REFUSED = {
    "trtllm": lambda a, f, n: False,
    "vllm": lambda a, f, n: a == "linear" or f == "linear" or (a == "no_op" and n == 0),
    "sglang": lambda a, f, n: (
        a in ("linear", "gqa_1") or f == "linear" or (a == "no_op" and n == 0)
    ),
    "llama.cpp": lambda a, f, n: f == "linear" or (f == "no_op" and (a != "no_op" or n == 3)),
    "mlx-lm": lambda a, f, n: "linear" in (a, f),
}


@pytest.mark.parametrize("engine", REFUSED)
def test_rules(engine: str) -> None:
    for a, f, n in itertools.product(ATTENTION, FFN, range(4)):
        assert allows(engine, a, f, n, CONFIG) is not REFUSED[engine](a, f, n), (a, f, n)


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


def test_an_unknown_engine_is_refused() -> None:
    with pytest.raises(InputError, match="steam"):
        allows("steam", "gqa_4", "mlp_512", 0, CONFIG)


@pytest.mark.parametrize("engine", REFUSED)
def test_widths_that_the_stock_format_cannot_say_load_nowhere(engine: str) -> None:
    config = tiny_config(4, intermediate_size=600)
    assert not allows(engine, "gqa_4", "mlp_600", 1, config)
    assert allows(engine, "gqa_4", "mlp_512", 1, config)
