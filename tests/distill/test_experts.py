"""A child with experts, distilled from its parent."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from puzzle_search.arch import ArchitectureSpec
from puzzle_search.build import build_child
from puzzle_search.checkpoint import load_decoder
from tests.distill.helpers import distilled, metrics
from tests.pico import Pico

PAIRS = [("gqa_2", "moe_4_width_32"), ("gqa_2", "moe_2_top_1"), ("gqa_1", "moe_8")]


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_the_child_comes_nearer_to_its_parent(
    pico_experts: Pico, pico_experts_library: Path, tmp_path: Path, dtype: str
) -> None:
    spec = ArchitectureSpec.of("parent", PAIRS)
    child = build_child(
        pico_experts.parent, pico_experts_library, spec, tmp_path / "child", dtype="fp32"
    )
    out = distilled(
        pico_experts, child, tmp_path / "out", tokens=512 * 20, held_out_every=20, dtype=dtype
    )
    before, *_, after = metrics(out)
    assert after["held_out_kl"] < 0.8 * before["held_out_kl"]
    tensors = [load_file(folder / "model.safetensors") for folder in (child, out)]
    assert tensors[0].keys() == tensors[1].keys()
    for layer in range(3):
        router = f"model.layers.{layer}.block_sparse_moe.gate.weight"
        assert not torch.equal(tensors[0][router], tensors[1][router])
    assert load_decoder(out).spec == spec
