"""Folders in plain nemotron-nas: read back by this package as that, without its own keys.

Engines run them in test_mlx_lm.py and test_vllm.py; here the substitute forms are held against the
child in float64.
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from puzzle_search.arch import ArchitectureSpec
from puzzle_search.checkpoint import load_decoder
from puzzle_search.errors import InputError
from puzzle_search.export import plan_export, write_export
from puzzle_search.export.decilm_plan import unfused
from tests.export.engine_process import PROMPT, config_of, write_random_child, write_tokenizer
from tests.faults import SmallDisk, killed_while_writing

ATTENTION, FFN = ["gqa_4", "gqa_1", "linear", "no_op"], ["mlp_512", "mlp_256", "linear", "no_op"]
PARENTS: dict[str, dict[str, Any]] = {
    "llama": {},
    "biases": {"attention_bias": True, "mlp_bias": True},
    "qwen2": {"model_type": "qwen2"},
}


def logits(model: Path) -> torch.Tensor:
    with torch.inference_mode():
        out: torch.Tensor = load_decoder(model, dtype=torch.float64)(torch.tensor([PROMPT]))
    return out


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def child_of(folder: Path, tokenizer: Path, pairs: Any, **changes: Any) -> Path:
    config = config_of(len(pairs), **changes)
    spec = ArchitectureSpec.of("pico", pairs)
    return write_random_child(folder / "child", config, spec, tokenizer)


@pytest.mark.parametrize("parent", PARENTS)
@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize(("attention", "ffn"), [*itertools.product(ATTENTION, FFN)])
def test_substitute_forms_compute_the_child(
    attention: str, ffn: str, place: int, parent: str, tokenizer: Path, tmp_path: Path
) -> None:
    pairs = [("gqa_2", "mlp_512")] * 3
    pairs[place] = (attention, ffn)
    child = child_of(tmp_path, tokenizer, pairs, **PARENTS[parent])
    out = tmp_path / "out"
    write_export(plan_export(child, "vllm", dtype="f32"), child, out)
    raw = json.loads((out / "config.json").read_text())
    assert "puzzle_search" not in raw
    if raw["model_type"] == "nemotron-nas":
        assert not any(block["ffn"]["replace_with_linear"] for block in raw["block_configs"])
        assert not any(block["attention"]["replace_with_linear"] for block in raw["block_configs"])
        assert not raw["block_configs"][0]["attention"]["no_op"]
    torch.testing.assert_close(logits(out), logits(child), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("engine", ["vllm", "mlx-lm"])
@pytest.mark.parametrize(
    "changes", [{}, {"model_type": "qwen2"}, {"model_type": "qwen3", "head_dim": 32}]
)
def test_blocks_all_alike_are_a_model_of_the_parents_type(
    changes: dict[str, Any], engine: str, tokenizer: Path, tmp_path: Path
) -> None:
    pairs = [("gqa_2", "mlp_256"), ("no_op", "no_op"), ("gqa_2", "mlp_256")]
    child = child_of(tmp_path, tokenizer, pairs, **changes)
    write_export(plan_export(child, engine, dtype="f32"), child, tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float64)
    with torch.inference_mode():
        found = model(torch.tensor([PROMPT])).logits
    torch.testing.assert_close(found, logits(child), rtol=1e-5, atol=1e-5)


def test_what_is_exported_is_not_said_to_be_quantised_nor_fused() -> None:
    config = config_of(2, model_type="phi3", quantization_config={"quant_method": "fp8"})
    told = unfused(config)
    assert "quantization_config" not in told
    assert (told["model_type"], told["sliding_window"]) == ("mistral", None)


def test_the_cost_of_forms_is_told(tokenizer: Path, tmp_path: Path) -> None:
    pairs = [("no_op", "mlp_256"), ("gqa_4", "linear")]
    child = child_of(tmp_path, tokenizer, pairs)
    plan = plan_export(child, "vllm", dtype="f32")
    hidden, width = 64, 256
    first, linear = plan.forms
    # q and o of 4 heads, k and v of one, and the norm.
    assert first.extra_bytes == 4 * (2 * hidden * 64 + 2 * hidden * 16 + hidden)
    assert linear.extra_bytes == 4 * (3 * hidden * width - hidden**2 + 2 * width + hidden)
    assert "linear of block 1" in linear.form
    assert plan_export(child, "mlx-lm").forms == ()


@pytest.mark.parametrize(
    ("engine", "changes", "told"),
    [
        ("vllm", {"model_type": "qwen3", "head_dim": 16}, "q/k norms"),
        ("vllm", {"model_type": "mistral", "sliding_window": 64}, "sliding window"),
        ("mlx-lm", {"head_dim": 32}, "head size other than"),
        ("vllm", {"model_type": "smollm3", "no_rope_layers": [1, 0]}, "layers without rope"),
        ("mlx-lm", {"model_type": "granite", "residual_multiplier": 0.2}, "multipliers"),
        ("vllm", {"model_type": "olmo2"}, "norms after a subblock"),
    ],
)
def test_what_the_engine_would_compute_otherwise_is_refused(
    engine: str, changes: dict[str, Any], told: str, tokenizer: Path, tmp_path: Path
) -> None:
    child = child_of(tmp_path, tokenizer, [("gqa_2", "mlp_256"), ("gqa_1", "mlp_256")], **changes)
    with pytest.raises(InputError, match=told):
        plan_export(child, engine)


def test_linear_subblocks_have_mlx_lms_own_names(tokenizer: Path, tmp_path: Path) -> None:
    child = child_of(tmp_path, tokenizer, [("gqa_2", "linear"), ("linear", "mlp_256")])
    write_export(plan_export(child, "mlx-lm", dtype="f32"), child, tmp_path / "out")
    written, own = (load_file(folder / "model.safetensors") for folder in (tmp_path / "out", child))
    # [gqa, linear] [-, linear] [-, mlp]: it computes a matrix in the place of an FFN.
    for block, name in enumerate(("0.mlp.linear_mlp", "1.self_attn.linear_attn")):
        matrix = own[f"model.layers.{name}.weight"]
        assert torch.equal(written[f"model.layers.{block}.mlp.linear.weight"], matrix)


def test_no_attention_at_all_is_refused(tokenizer: Path, tmp_path: Path) -> None:
    child = child_of(tmp_path, tokenizer, [("no_op", "mlp_256"), ("linear", "mlp_512")])
    with pytest.raises(InputError, match="no attention in any block"):
        plan_export(child, "mlx-lm")


def test_folders_are_written_whole(tokenizer: Path, tmp_path: Path, small_disk: SmallDisk) -> None:
    child = child_of(tmp_path, tokenizer, [("gqa_2", "linear"), ("gqa_1", "mlp_256")])
    plan = plan_export(child, "vllm")
    small_disk.resize(kib=100)
    with pytest.raises(InputError, match="space"):
        write_export(plan, child, small_disk.folder / "out")
    assert not list(small_disk.folder.iterdir())
    command = ("export", child, "--to", "vllm", "--out", tmp_path / "out")
    killed_while_writing(r"safetensors", 1, *command)
    assert not (tmp_path / "out").exists()
    for name in ("a", "b"):
        write_export(plan, child, tmp_path / name)
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()
    with pytest.raises(InputError, match="exists"):
        write_export(plan, child, tmp_path / "a")
