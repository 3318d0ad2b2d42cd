"""Children as `build` writes them in vLLM with this package's plugin, held against float64."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from puzzle_search.arch import ArchitectureSpec
from puzzle_search.checkpoint import read_model_config
from puzzle_search.solve.problem.portability import verdicts
from tests.export.engine_process import (
    PROMPT,
    TOKENS,
    VOCABULARY,
    EngineDied,
    EngineProcess,
    check_against_reference,
    config_of,
    write_random_child,
    write_tokenizer,
)

PYTHON = os.environ.get("PUZZLE_SEARCH_VLLM_PYTHON")
pytestmark = [
    pytest.mark.engines,
    pytest.mark.skipif(PYTHON is None, reason="PUZZLE_SEARCH_VLLM_PYTHON names no interpreter"),
]
Pairs = list[tuple[str, str]]

PARENTS: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama-biases-tied": {
        "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True, "head_dim": 64,
    },
    "mistral": {"model_type": "mistral", "sliding_window": 8},
    "qwen2": {"model_type": "qwen2"},
    "qwen3": {"model_type": "qwen3", "head_dim": 64},
    "phi3": {"model_type": "phi3", "pad_token_id": 0, "sliding_window": 12},
}  # fmt: skip
# First, middle and last blocks of every kind, alone and in runs.
CHILDREN: dict[str, Pairs] = {
    "no-attention-first": [
        ("no_op", "mlp_256"), ("gqa_1", "linear"), ("linear", "no_op"), ("gqa_4", "mlp_300"),
    ],
    "linear-first-and-last": [
        ("linear", "mlp_512"), ("gqa_2", "no_op"), ("no_op", "no_op"), ("linear", "linear"),
    ],
    "runs": [("no_op", "linear"), ("no_op", "linear"), ("gqa_1", "mlp_256"), ("gqa_4", "no_op")],
}  # fmt: skip
WINDOWS: Pairs = [
    ("gqa_2", "mlp_512"), ("gqa_1_window_8", "linear"), ("gqa_2_window_16", "mlp_256"),
]  # fmt: skip
GRANITE = {"model_type": "granite", "embedding_multiplier": 12.0}


@pytest.fixture(scope="module")
def engine() -> Iterator[EngineProcess]:
    assert PYTHON is not None
    process = EngineProcess(Path(__file__).with_name("vllm_worker.py"), PYTHON)
    yield process
    process.close()


@pytest.mark.parametrize("child", CHILDREN)
@pytest.mark.parametrize("parent", PARENTS)
def test_every_variant_of_every_family(
    parent: str, child: str, engine: EngineProcess, tmp_path: Path
) -> None:
    check(engine, PARENTS[parent], CHILDREN[child], tmp_path)


def test_windows_beside_full_attention(engine: EngineProcess, tmp_path: Path) -> None:
    check(engine, {}, WINDOWS, tmp_path)


@pytest.mark.parametrize(
    ("changes", "pairs", "why"),
    [
        (GRANITE, [("gqa_1", "mlp_256"), ("gqa_2", "mlp_512")], "multipliers"),
        ({}, [("linear", "mlp_512"), ("no_op", "linear")], "no attention in any block"),
    ],
)
def test_what_it_does_not_compute_is_refused(
    changes: dict[str, Any], pairs: Pairs, why: str, engine: EngineProcess, tmp_path: Path
) -> None:
    folder = written(changes, pairs, tmp_path)
    config, spec = read_model_config(folder)
    (verdict,) = (one for one in verdicts(spec, config) if one.engine == "vllm-plugin")
    assert not verdict.as_built
    assert why in verdict.reasons[0]
    with pytest.raises((AssertionError, EngineDied)):
        ask(engine, folder)


def written(changes: dict[str, Any], pairs: Pairs, tmp_path: Path) -> Path:
    # vLLM's attention on a CPU wants heads of 32 or more.
    config = config_of(len(pairs), **({"hidden_size": 128, "head_dim": 32} | changes))
    tokenizer = write_tokenizer(tmp_path / "tokenizer")
    spec = ArchitectureSpec.of("pico", pairs)
    return write_random_child(tmp_path / "child", config, spec, tokenizer)


def ask(engine: EngineProcess, folder: Path) -> dict[str, Any]:
    return engine.ask(file=str(folder), prompt=PROMPT, tokens=TOKENS, vocabulary=VOCABULARY)


def check(engine: EngineProcess, changes: dict[str, Any], pairs: Pairs, tmp_path: Path) -> None:
    folder = written(changes, pairs, tmp_path)
    check_against_reference(folder, ask(engine, folder), tolerance=1e-3)
