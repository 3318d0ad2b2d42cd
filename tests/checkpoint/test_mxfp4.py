"""gpt-oss checkpoints whose experts are MXFP4, against transformers' own unpacking."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from puzzle_search.arch import ParentConfig
from puzzle_search.checkpoint import CheckpointReader, load_decoder
from puzzle_search.errors import InputError
from tests.model.pico import random_ids, write_parent
from tests.model.test_parity import GPT_OSS, TOLERANCE

EXPERTS = GPT_OSS["num_local_experts"]


def write_packed(folder: Path) -> Any:
    """A checkpoint with packed experts; the transformers model of the same numbers."""
    model = write_parent(folder, **GPT_OSS)
    file = folder / "model.safetensors"
    tensors, generator = load_file(file), torch.Generator().manual_seed(5)
    for name in [name for name in tensors if name.endswith(("gate_up_proj", "down_proj"))]:
        _, inner, outer = tensors.pop(name).shape
        groups = (EXPERTS, outer, inner // 32)
        blocks = torch.randint(0, 256, (*groups, 16), generator=generator, dtype=torch.uint8)
        scales = torch.randint(118, 126, groups, generator=generator, dtype=torch.uint8)
        tensors |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
        values = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32)
        model.get_parameter(name).data.copy_(values)
    save_file(tensors, file, metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "mxfp4"}
    (folder / "config.json").write_text(json.dumps(config))
    return model


@torch.no_grad()
def test_logits_of_packed_experts_are_transformers(tmp_path: Path) -> None:
    model, ids = write_packed(tmp_path), random_ids(2, 40)
    CheckpointReader(tmp_path).check(ParentConfig.from_file(tmp_path))
    expected = model(ids).logits
    assert expected.std() > 0.5
    torch.testing.assert_close(load_decoder(tmp_path)(ids), expected, atol=TOLERANCE, rtol=0)


@torch.no_grad()
def test_gpt_oss_puzzle_of_the_same_layers_is_transformers(tmp_path: Path) -> None:
    model, ids = write_packed(tmp_path), random_ids(2, 40)
    config = json.loads((tmp_path / "config.json").read_text())
    config["model_type"] = "gpt_oss_puzzle"
    config["block_configs"] = [
        {"num_local_experts": EXPERTS, "sliding_window": window} for window in (11, None, 11)
    ]
    (tmp_path / "config.json").write_text(json.dumps(config))
    found = load_decoder(tmp_path)(ids)
    torch.testing.assert_close(found, model(ids).logits, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize(("suffix", "change"), [("_scales", "missing"), ("_blocks", "cut")])
def test_damaged_experts_are_refused(tmp_path: Path, suffix: str, change: str) -> None:
    write_packed(tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    name = f"model.layers.0.mlp.experts.down_proj{suffix}"
    whole = tensors.pop(name)
    if change == "cut":
        tensors[name] = whole[:, 1:].contiguous()
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(InputError, match=name):
        load_decoder(tmp_path)
