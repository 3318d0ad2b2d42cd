"""Exported children in llama.cpp itself, held against this package in float64."""

from __future__ import annotations

import itertools
import random
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from puzzle_search.arch import ArchitectureSpec, BlockChoice, ParentConfig
from puzzle_search.errors import InputError
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
from tests.model.pico import write_parent

pytest.importorskip("xllamacpp", reason="pip install xllamacpp")
pytestmark = pytest.mark.engines

ATTENTION, FFN = ["gqa_4", "gqa_1", "linear", "no_op"], ["mlp_512", "mlp_256", "linear", "no_op"]
KEPT = ("gqa_2", "mlp_512")
LAYERS = 4
PLACES = {
    "first": {0},
    "middle": {1},
    "last": {3},
    "pair": {1, 2},
    "first-pair": {0, 1},
    "run-to-last": {1, 2, 3},
    "all": {0, 1, 2, 3},
}


@pytest.fixture(scope="module")
def engine() -> Iterator[EngineProcess]:
    process = EngineProcess(Path(__file__).with_name("llama_cpp_worker.py"))
    yield process
    process.close()


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def check(
    engine: EngineProcess, folder: Path, model: Path, *, tolerance: float = 1e-3, **options: str
) -> str:
    """Export, run, compare; the architecture that llama.cpp was told."""
    plan = plan_export(model, "llama.cpp", **({"dtype": "f32"} | options))
    file = folder / "child.gguf"
    write_export(plan, file)
    question = {"prompt": PROMPT, "tokens": TOKENS, "vocabulary": VOCABULARY}
    check_against_reference(model, engine.ask(file=str(file), **question), tolerance=tolerance)
    return plan.architecture


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(("attention", "ffn"), [*itertools.product(ATTENTION, FFN)])
def test_every_variant_in_every_place(
    attention: str, ffn: str, place: str, engine: EngineProcess, tokenizer: Path, tmp_path: Path
) -> None:
    pairs = [(attention, ffn) if n in PLACES[place] else KEPT for n in range(LAYERS)]
    config = config_of(LAYERS)
    spec = ArchitectureSpec.of("pico", pairs)
    child = write_random_child(tmp_path / "child", config, spec, tokenizer)
    if place == "all" and not attention.startswith("gqa"):
        with pytest.raises(InputError, match="keeps no attention in any of its 4 blocks"):
            plan_export(child, "llama.cpp")
    else:
        check(engine, tmp_path, child)


def random_spec(seed: int, layers: int) -> ArchitectureSpec:
    """Blocks of one to three layers, any variants in each, and attention in one."""
    draw, blocks, first = random.Random(seed), [], 0
    while first < layers:
        covered = tuple(range(first, min(layers, first + draw.choice([1, 1, 1, 2, 3]))))
        pair = draw.choice([*ATTENTION, "gqa_2"]), draw.choice(FFN)
        blocks.append(BlockChoice(attention=pair[0], ffn=pair[1], layers=covered))
        first += len(covered)
    number = draw.randrange(len(blocks))
    blocks[number] = replace(blocks[number], attention="gqa_2")
    return ArchitectureSpec(parent="pico", blocks=tuple(blocks))


LLAMA3 = {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0,
          "high_freq_factor": 4.0, "original_max_position_embeddings": 32}  # fmt: skip
PARENTS: dict[str, dict[str, Any]] = {
    "llama": {},
    "tied": {"tie_word_embeddings": True},
    "heads-of-24": {"head_dim": 24},
    "llama3-rope": {"rope_parameters": LLAMA3},
    "linear-rope": {"rope_scaling": {"type": "linear", "factor": 2.0}, "rope_theta": 5e3},
    "biases": {"attention_bias": True, "mlp_bias": True},
    "mistral": {"model_type": "mistral", "sliding_window": None},
    "qwen2": {"model_type": "qwen2"},
}


@pytest.mark.parametrize("seed", range(48))
def test_random_children(seed: int, engine: EngineProcess, tokenizer: Path, tmp_path: Path) -> None:
    changes = list(PARENTS.values())[seed % len(PARENTS)]
    config, spec = config_of(6, **changes), random_spec(seed, 6)
    child = write_random_child(tmp_path / "child", config, spec, tokenizer, seed=seed)
    check(engine, tmp_path, child)


@pytest.mark.parametrize("dropped", [False, True])
@pytest.mark.parametrize(
    ("changes", "architecture"),
    [
        *((changes, "llama") for name, changes in PARENTS.items() if name != "qwen2"),
        ({"model_type": "qwen2"}, "qwen2"),
        ({"model_type": "qwen3", "head_dim": 32}, "qwen3"),
    ],
)
def test_blocks_all_alike(
    changes: dict[str, Any],
    architecture: str,
    dropped: bool,
    engine: EngineProcess,
    tokenizer: Path,
    tmp_path: Path,
) -> None:
    pairs = [("gqa_2", "mlp_256")] * 3
    if dropped:
        pairs[1] = ("no_op", "no_op")
    config: ParentConfig = config_of(3, **changes)
    spec = ArchitectureSpec.of("pico", pairs)
    child = write_random_child(tmp_path / "child", config, spec, tokenizer)
    assert check(engine, tmp_path, child) == architecture


def test_a_parent_folder(engine: EngineProcess, tokenizer: Path, tmp_path: Path) -> None:
    write_parent(tmp_path / "parent", vocab_size=VOCABULARY)
    shutil.copytree(tokenizer, tmp_path / "parent", dirs_exist_ok=True)
    assert check(engine, tmp_path, tmp_path / "parent") == "llama"
