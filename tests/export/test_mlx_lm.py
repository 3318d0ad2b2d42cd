"""Exported children in mlx-lm itself, held against this package in float64."""

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
from tests.export.specs import PARENTS, pairs_of_every_place, random_spec

PYTHON = os.environ.get("PUZZLE_SEARCH_MLX_PYTHON")
pytestmark = [
    pytest.mark.engines,
    pytest.mark.skipif(PYTHON is None, reason="make test-engines installs mlx-lm"),
]


@pytest.fixture(scope="module")
def engine() -> Iterator[EngineProcess]:
    assert PYTHON is not None
    process = EngineProcess(Path(__file__).with_name("mlx_lm_worker.py"), PYTHON)
    yield process
    process.close()


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def check(engine: EngineProcess, model: Path, out: Path) -> str:
    plan = plan_export(model, "mlx-lm", dtype="f32")
    write_export(plan, model, out)
    answer = engine.ask(file=str(out), prompt=PROMPT, tokens=TOKENS, vocabulary=VOCABULARY)
    check_against_reference(model, answer, tolerance=1e-3)
    return plan.architecture


@pytest.mark.parametrize("pairs", pairs_of_every_place(with_attention=True))
def test_every_variant_in_every_place(
    pairs: list[tuple[str, str]], engine: EngineProcess, tokenizer: Path, tmp_path: Path
) -> None:
    spec = ArchitectureSpec.of("pico", pairs)
    child = write_random_child(tmp_path / "child", config_of(len(pairs)), spec, tokenizer)
    check(engine, child, tmp_path / "out")


MLX_PARENTS = [PARENTS[name] for name in PARENTS if name != "heads-of-24"]


@pytest.mark.parametrize("seed", range(49))
def test_random_children(seed: int, engine: EngineProcess, tokenizer: Path, tmp_path: Path) -> None:
    config = config_of(6, **MLX_PARENTS[seed % len(MLX_PARENTS)])
    spec = random_spec(seed, 6)
    child = write_random_child(tmp_path / "child", config, spec, tokenizer, seed=seed)
    check(engine, child, tmp_path / "out")


@pytest.mark.parametrize(
    ("changes", "architecture"),
    [
        ({}, "llama"),
        ({"head_dim": 24}, "llama"),
        ({"model_type": "qwen2"}, "qwen2"),
        ({"model_type": "qwen3", "head_dim": 32}, "qwen3"),
    ],
)
def test_blocks_all_alike(
    changes: dict[str, Any],
    architecture: str,
    engine: EngineProcess,
    tokenizer: Path,
    tmp_path: Path,
) -> None:
    spec = ArchitectureSpec.of("pico", [("gqa_2", "mlp_256")] * 3)
    child = write_random_child(tmp_path / "child", config_of(3, **changes), spec, tokenizer)
    assert check(engine, child, tmp_path / "out") == architecture
