"""Children of gpt-oss are written as NVIDIA's published one: its keys, and gpt-oss's tensors."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from puzzle_search.arch import ArchitectureSpec, BlockChoice, ParentConfig, SearchSpace
from puzzle_search.build import build_child
from puzzle_search.checkpoint import child_config, load_decoder, read_model_config
from puzzle_search.files import read_json
from puzzle_search.library import BldSettings, build_library
from tests.arch.configs import CONFIGS
from tests.checkpoint.test_heterogeneous import PUZZLE
from tests.model.pico import random_ids, reference, write_parent
from tests.model.test_parity import GPT_OSS


def test_the_published_child_is_written_with_its_keys() -> None:
    parent = ParentConfig.from_dict(CONFIGS["gpt-oss-120b"], name="gpt-oss-120b")
    pairs = [
        (
            "gqa_8" + (f"_window_{block['sliding_window']}" if block["sliding_window"] else ""),
            f"moe_{block['num_local_experts']}",
        )
        for block in PUZZLE["block_configs"]
    ]
    written = child_config(parent, ArchitectureSpec.of("gpt-oss-120b", pairs), dtype="bfloat16")
    assert written["model_type"] == PUZZLE["model_type"]
    assert written["architectures"] == ["GptOssPuzzleForCausalLM"]
    assert written["block_configs"] == PUZZLE["block_configs"]
    full = [block["sliding_window"] is None for block in PUZZLE["block_configs"]]
    assert [kind == "full_attention" for kind in written["layer_types"]] == full
    assert "quantization_config" not in written


@pytest.mark.parametrize(
    "change",
    [
        {"attention": "gqa_4"}, {"attention": "linear"}, {"ffn": "moe_64_top_2"},
        {"ffn": "moe_64_width_1440"}, {"ffn": "no_op"},
    ],
)  # fmt: skip
def test_what_the_format_cannot_say_is_not_written_so(change: dict[str, str]) -> None:
    parent = ParentConfig.from_dict(CONFIGS["gpt-oss-120b"], name="gpt-oss-120b")
    blocks = list(ArchitectureSpec.identity(parent).blocks)
    blocks[1] = BlockChoice(**({"attention": "gqa_8", "ffn": "moe_128"} | change), layers=(1,))
    spec = ArchitectureSpec(parent=parent.name, blocks=tuple(blocks))
    assert child_config(parent, spec, dtype="bfloat16")["model_type"] == "puzzle-search"


@torch.no_grad()
def test_a_built_child_is_gpt_oss_of_its_shape(tmp_path: Path) -> None:
    """All its layers alike, so that transformers' own class loads its tensors and computes it."""
    write_parent(tmp_path / "parent", **GPT_OSS)
    config = ParentConfig.from_file(tmp_path / "parent")
    space = SearchSpace.uniform(
        config, attention=["gqa_2", "gqa_2_window_6"], ffn=["moe_6", "moe_3"]
    )
    tokens, library = random_ids(8, 32), tmp_path / "library"
    build_library(tmp_path / "parent", space, tokens, tokens[:2], library, BldSettings(tokens=0))
    pairs = [("gqa_2_window_6", "moe_3")] * config.num_layers
    spec = ArchitectureSpec.of(config.name, pairs)
    child = build_child(tmp_path / "parent", library, spec, tmp_path / "child", dtype="fp32")
    assert read_json(child / "config.json", remedy="")["model_type"] == "gpt_oss_puzzle"
    assert read_model_config(child) == (config, spec)
    expected = reference(
        **GPT_OSS | {"sliding_window": 6, "num_local_experts": 3}
        | {"layer_types": ["sliding_attention"] * config.num_layers}
    )  # fmt: skip
    expected.load_state_dict(load_file(child / "model.safetensors"))
    ids = random_ids(2, 40, seed=5)
    decoder = load_decoder(child)
    torch.testing.assert_close(decoder(ids), expected(ids).logits, atol=1e-4, rtol=0)
