"""Configurations of other tools' children: published Nemotrons, Puzzletron's, transformers' own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig

from puzzle_search.arch import ArchitectureSpec, ParentConfig, architecture_parameters
from puzzle_search.checkpoint import read_model_config
from puzzle_search.errors import InputError
from tests.arch.configs import CONFIGS
from tests.model.pico import LLAMA
from tests.pico import run_here


def write_config(folder: Path, raw: dict[str, Any]) -> Path:
    (folder / "config.json").write_text(json.dumps(raw))
    return folder


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("Llama-3_1-Nemotron-51B-Instruct", 51_501_015_040),
        ("Llama-3_3-Nemotron-Super-49B-v1", 49_867_145_216),
        ("Llama-3_1-Nemotron-Ultra-253B-v1", 253_401_268_224),
    ],
)
def test_published_children(
    name: str,
    parameters: int,
    shared_data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    published = json.loads((shared_data / "nemotron" / f"{name}.json").read_text())
    raw = config_of(published)
    write_config(tmp_path, raw)
    run_here("inspect", tmp_path, "--spec", tmp_path / "spec.yaml")
    assert f"{parameters:,} parameters" in capsys.readouterr().out
    config, spec = read_model_config(tmp_path)
    assert ArchitectureSpec.from_file(tmp_path / "spec.yaml") == spec
    assert architecture_parameters(spec, config) == parameters


PUZZLE = CONFIGS["gpt-oss-120b"] | {
    "model_type": "gpt_oss_puzzle",
    # As many of each as published: 10 full, 18 of 128 and 8 of 8,192; 18 of 128 experts, 18 of 64.
    "block_configs": [
        {
            "num_local_experts": 128 if layer < 18 else 64,
            "sliding_window": 128 if layer % 2 == 0 else 8192 if layer < 16 else None,
        }
        for layer in range(36)
    ],
    "layer_types": ["full_attention"] * 36,
}


def test_gpt_oss_puzzle_88b(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_config(tmp_path, PUZZLE)
    run_here("inspect", tmp_path, "--spec", tmp_path / "spec.yaml")
    out = capsys.readouterr().out
    assert "18 x gqa_8_window_128, 10 x gqa_8, 8 x gqa_8_window_8192" in out
    assert "18 x moe_128, 18 x moe_64" in out
    config, spec = read_model_config(tmp_path)
    assert ArchitectureSpec.from_file(tmp_path / "spec.yaml") == spec
    assert architecture_parameters(spec, config) == pytest.approx(88e9, rel=0.01)
    # Its parent is gpt-oss-120b, whose every other layer attends in the window of 128.
    parent = ParentConfig.from_dict(CONFIGS["gpt-oss-120b"], name=config.name)
    assert config == parent


def config_of(published: dict[str, Any]) -> dict[str, Any]:
    """A published config.json from its transcription."""

    def entry(kind: str, **size: Any) -> dict[str, Any]:
        return {"no_op": kind == "no_op", "replace_with_linear": kind == "linear", **size}

    shared = {"max_position_embeddings": 131072, "rms_norm_eps": 1e-5}
    blocks = [
        {
            "attention": entry(layer["attn"], n_heads_in_group=layer["n_heads_in_group"]),
            "ffn": entry(layer["ffn"], ffn_mult=layer["ffn_mult"]),
        }
        for layer in published["layers"]
    ]
    sizes = ("hidden_size", "num_attention_heads", "num_hidden_layers", "vocab_size", "head_dim")
    own = published.get("top_level", {}) | {key: published[key] for key in sizes}
    return shared | own | {"model_type": "nemotron-nas", "block_configs": blocks}


PUZZLETRON = LLAMA | {
    "num_hidden_layers": 3,
    "num_key_value_heads": None,
    "intermediate_size": None,
    "block_configs": [
        {
            "attention": {"no_op": False, "num_key_value_heads": 4, "llama4": None},
            "ffn": {"no_op": False, "intermediate_size": 512, "moe": None},
            "parallel_blocks": None,
        },
        {"attention": {"no_op": True}, "ffn": {"intermediate_size": 256}},
        {"attention": {"num_key_value_heads": 1}, "ffn": {"no_op": True}},
    ],
}
SIZES = {"block_configs": None, "num_key_value_heads": 4, "intermediate_size": 512}
PAIRS = [("gqa_4", "mlp_512"), ("no_op", "mlp_256"), ("gqa_1", "no_op")]


def test_puzzletron(tmp_path: Path) -> None:
    config, spec = read_model_config(write_config(tmp_path, PUZZLETRON))
    assert [(block.attention, block.ffn) for block in spec.blocks] == PAIRS
    assert (config.num_kv_heads, config.intermediate_size) == (4, 512)


def test_transformers(tmp_path: Path) -> None:
    overrides = {
        1: {"intermediate_size": 256, "skip": ["self_attn"]},
        "2": {"num_key_value_heads": 1, "skip": ["mlp"]},
    }
    raw = LLAMA | {"num_hidden_layers": 3}
    AutoConfig.for_model(**raw, per_layer_config=overrides).save_pretrained(tmp_path)
    _, spec = read_model_config(tmp_path / "config.json")
    assert [(block.attention, block.ffn) for block in spec.blocks] == PAIRS


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"num_hidden_layers": 4}, "3 blocks are described for 4 layers"),
        ({"block_configs": [{"attention": {"no_op": True}}]}, "block 0 has no attention and ffn"),
        (
            {"block_configs": [{"attention": {"window_length": 8}, "ffn": {"no_op": True}}]},
            "attention has window_length",
        ),
        (SIZES | {"per_layer_config": {"7": {}}}, "layer 7 of 3"),
        (SIZES | {"per_layer_config": {"1": {"head_dim": 8}}}, "head_dim"),
        (SIZES | {"per_layer_config": {"1": {"skip": ["router"]}}}, "router"),
    ],
)
def test_what_is_not_supported_is_refused(
    changes: dict[str, Any], told: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=told):
        read_model_config(write_config(tmp_path, PUZZLETRON | changes))


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"num_local_experts": 0}, "num_local_experts"),
        ({"num_local_experts": 2}, "cannot pass 4 of 2 experts"),
        ({"sliding_window": "8k"}, "sliding_window"),
        ({"no_op": True}, "block 3"),
    ],
)
def test_blocks_of_gpt_oss_puzzle_that_are_not_known_are_refused(
    changed: dict[str, Any], named: str, tmp_path: Path
) -> None:
    blocks = [dict(block) for block in PUZZLE["block_configs"]]
    blocks[3] |= changed
    write_config(tmp_path, PUZZLE | {"block_configs": blocks})
    with pytest.raises(InputError, match=named):
        read_model_config(tmp_path)
