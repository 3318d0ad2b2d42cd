"""Exported children in vLLM itself, held against this package in float64.

An engine takes seconds to start here, so each child holds as many variants and places as it can.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from puzzle_search.arch import ArchitectureSpec
from puzzle_search.export import plan_export, write_export
from tests.export.engine_process import (
    PROMPT,
    TOKENS,
    VOCABULARY,
    EngineProcess,
    check_against_reference,
    config_of,
    write_random_child,
    write_tokenizer,
)
from tests.export.specs import PARENTS, random_spec

PYTHON = os.environ.get("PUZZLE_SEARCH_VLLM_PYTHON")
pytestmark = [
    pytest.mark.engines,
    pytest.mark.skipif(PYTHON is None, reason="PUZZLE_SEARCH_VLLM_PYTHON names no interpreter"),
]

# First, middle and last blocks of every kind, alone and in runs; (changes of the parent, pairs).
CHILDREN: dict[str, tuple[dict[str, Any], list[tuple[str, str]]]] = {
    "no-attention-first": (
        {},
        [("no_op", "mlp_256"), ("gqa_1", "linear"), ("linear", "no_op"), ("gqa_4", "mlp_512")],
    ),
    "linear-first-and-last": (
        {},
        [("linear", "mlp_512"), ("gqa_2", "no_op"), ("no_op", "no_op"), ("linear", "linear")],
    ),
    "attention-alone-last": (
        {"tie_word_embeddings": True},
        [("gqa_4", "no_op"), ("gqa_1", "no_op"), ("no_op", "linear"), ("gqa_2", "no_op")],
    ),
    "runs": (
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 5e3, "factor": 2.0}},
        [("no_op", "linear"), ("no_op", "linear"), ("gqa_1", "mlp_256"), ("no_op", "mlp_512")],
    ),
    "biases": (
        {"attention_bias": True, "mlp_bias": True},
        [("no_op", "linear"), ("gqa_2", "mlp_256"), ("gqa_1", "linear"), ("linear", "mlp_512")],
    ),
    "qwen2": (
        {"model_type": "qwen2"},
        [("gqa_1", "mlp_256"), ("no_op", "mlp_512"), ("gqa_4", "linear"), ("linear", "no_op")],
    ),
    "heads-of-64": (
        {"head_dim": 64},
        [("gqa_2", "mlp_512"), ("gqa_1", "mlp_256"), ("gqa_4", "linear"), ("no_op", "no_op")],
    ),
    "qwen3-alike": (
        {"model_type": "qwen3", "head_dim": 64},
        [("no_op", "no_op"), ("gqa_2", "mlp_512"), ("gqa_2", "mlp_512"), ("gqa_2", "mlp_512")],
    ),
}


@pytest.fixture(scope="module")
def engine() -> Iterator[EngineProcess]:
    assert PYTHON is not None
    # Exported folders need nothing of this package's plugin, which may be installed there.
    process = EngineProcess(Path(__file__).with_name("vllm_worker.py"), PYTHON, VLLM_PLUGINS="")
    yield process
    process.close()


@pytest.mark.parametrize("name", CHILDREN)
def test_children(name: str, engine: EngineProcess, tmp_path: Path) -> None:
    changes, pairs = CHILDREN[name]
    check(engine, changes, ArchitectureSpec.of("pico", pairs), tmp_path)


VLLM_PARENTS = [PARENTS[name] for name in PARENTS if name != "heads-of-24"]


@pytest.mark.parametrize("seed", range(14))
def test_random_children(seed: int, engine: EngineProcess, tmp_path: Path) -> None:
    check(engine, VLLM_PARENTS[seed % len(VLLM_PARENTS)], random_spec(seed, 6), tmp_path)


def check(
    engine: EngineProcess, changes: dict[str, Any], spec: ArchitectureSpec, tmp_path: Path
) -> None:
    # Its attention on a CPU wants heads of 32 or more.
    own = {"hidden_size": 128, "head_dim": 32} | changes
    config = config_of(spec.num_layers, **own)
    tokenizer = write_tokenizer(tmp_path / "tokenizer")
    child = write_random_child(tmp_path / "child", config, spec, tokenizer)
    write_export(plan_export(child, "vllm", dtype="f32"), child, tmp_path / "out")
    answer = engine.ask(
        file=str(tmp_path / "out"), prompt=PROMPT, tokens=TOKENS, vocabulary=VOCABULARY
    )
    check_against_reference(child, answer, tolerance=1e-3)
