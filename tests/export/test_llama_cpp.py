"""Exported children in llama.cpp itself, held against this package in float64."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from puzzle_search.arch import ArchitectureSpec, ParentConfig
from puzzle_search.checkpoint import load_decoder
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
from tests.export.specs import PARENTS, pairs_of_every_place, random_spec
from tests.model.pico import write_parent

pytest.importorskip("xllamacpp", reason="pip install xllamacpp")
pytestmark = pytest.mark.engines


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
    write_export(plan, model, file)
    question = {"prompt": PROMPT, "tokens": TOKENS, "vocabulary": VOCABULARY}
    check_against_reference(model, engine.ask(file=str(file), **question), tolerance=tolerance)
    return plan.architecture


@pytest.mark.parametrize("pairs", pairs_of_every_place(with_attention=True))
def test_every_variant_in_every_place(
    pairs: list[tuple[str, str]], engine: EngineProcess, tokenizer: Path, tmp_path: Path
) -> None:
    spec = ArchitectureSpec.of("pico", pairs)
    child = write_random_child(tmp_path / "child", config_of(len(pairs)), spec, tokenizer)
    check(engine, tmp_path, child)


@pytest.mark.parametrize("pairs", pairs_of_every_place(with_attention=False))
def test_no_attention_at_all_is_refused(
    pairs: list[tuple[str, str]], tokenizer: Path, tmp_path: Path
) -> None:
    spec = ArchitectureSpec.of("pico", pairs)
    child = write_random_child(tmp_path / "child", config_of(len(pairs)), spec, tokenizer)
    with pytest.raises(InputError, match="no attention in any block"):
        plan_export(child, "llama.cpp")


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


def test_fewer_bits_err_more(engine: EngineProcess, tokenizer: Path, tmp_path: Path) -> None:
    spec = ArchitectureSpec.of("pico", [("gqa_2", "mlp_512"), ("linear", "mlp_256")] * 2)
    child = write_random_child(tmp_path / "child", config_of(4), spec, tokenizer)
    with torch.inference_mode():
        logits = load_decoder(child, dtype=torch.float64)(torch.tensor([PROMPT]))[0, -1]
    errors = []
    for dtype in ("f32", "f16", "q8_0", "q5_0", "q4_k", "q4_0"):
        file = tmp_path / f"{dtype}.gguf"
        write_export(plan_export(child, "llama.cpp", dtype=dtype), child, file)
        answer = engine.ask(file=str(file), prompt=PROMPT, tokens=1, vocabulary=VOCABULARY)
        found = torch.tensor(answer["logprobs"][0], dtype=torch.float64)
        errors.append(float((found - logits.log_softmax(-1)).abs().mean()))
    assert errors == sorted(errors)
    assert errors[2] < 0.05 * float(logits.std())


def test_mixed_types_compute_what_our_runtime_does(
    engine: EngineProcess, tokenizer: Path, tmp_path: Path
) -> None:
    typed = [
        ("gqa_2@q8_0", "mlp_512@q4_0"),
        ("linear@q4_0", "mlp_256@q5_0"),
        ("gqa_1@q4_0", "mlp_256"),
    ]
    pairs = [(attention.partition("@")[0], ffn.partition("@")[0]) for attention, ffn in typed]
    files = {
        name: write_random_child(
            tmp_path / name, config_of(3), ArchitectureSpec.of("pico", blocks), tokenizer
        )
        for name, blocks in (("typed", typed), ("plain", pairs))
    }
    file = tmp_path / "child.gguf"
    write_export(plan_export(files["typed"], "llama.cpp", dtype="f16"), files["typed"], file)
    answer = engine.ask(file=str(file), prompt=PROMPT, tokens=1, vocabulary=VOCABULARY)
    found = torch.tensor(answer["logprobs"][0], dtype=torch.float64)
    errors = {}
    for name, child in files.items():
        with torch.inference_mode():
            logits = load_decoder(child, dtype=torch.float64)(torch.tensor([PROMPT]))[0, -1]
        errors[name] = float((found - logits.log_softmax(-1)).abs().mean())
    # What is left is that llama.cpp rounds activations to 8 bits.
    assert errors["typed"] < 0.25 * errors["plain"]


def test_a_parent_folder(engine: EngineProcess, tokenizer: Path, tmp_path: Path) -> None:
    write_parent(tmp_path / "parent", vocab_size=VOCABULARY)
    shutil.copytree(tokenizer, tmp_path / "parent", dirs_exist_ok=True)
    assert check(engine, tmp_path, tmp_path / "parent") == "llama"
