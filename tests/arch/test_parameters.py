"""Counts against transformers' own models and against published children."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from puzzle_search.arch import (
    ArchitectureSpec,
    ParentConfig,
    architecture_parameters,
    embedding_parameters,
    kv_values_per_token,
    parse_variant,
    subblock_parameters,
)
from tests.arch.configs import CONFIGS, PUBLISHED_PARAMETERS

NEMOTRON = {
    "Llama-3_1-Nemotron-51B-Instruct": 51_501_015_040,
    "Llama-3_3-Nemotron-Super-49B-v1": 49_867_145_216,
    "Llama-3_1-Nemotron-Ultra-253B-v1": 253_401_268_224,
}


@cache
def reference_model(name: str) -> Any:
    """The transformers model of a config: shapes alone, no memory."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(**CONFIGS[name]))


def parameters(*modules: torch.nn.Module) -> int:
    return sum(p.numel() for module in modules for p in module.parameters())


@pytest.mark.parametrize("name", CONFIGS)
def test_totals_equal_transformers_and_the_published_figure(name: str) -> None:
    config = ParentConfig.from_dict(CONFIGS[name], name=name)
    counted = architecture_parameters(ArchitectureSpec.identity(config), config)
    assert counted == parameters(reference_model(name))
    assert counted == PUBLISHED_PARAMETERS[name]


@pytest.mark.parametrize("name", CONFIGS)
def test_each_subblock_equals_transformers(name: str) -> None:
    config = ParentConfig.from_dict(CONFIGS[name], name=name)
    attention = parse_variant("attention", config.attention)
    ffn = parse_variant("ffn", config.ffn)
    model = reference_model(name)
    assert len(model.model.layers) == config.num_layers
    norms = config.family.stored_norms
    for layer in model.model.layers:
        own_norms = {key for key, _ in layer.named_children() if "layernorm" in key}
        assert own_norms == set(norms)
        of_attention, of_ffn = (getattr(layer, norm) for norm in norms)
        assert subblock_parameters(attention, config) == parameters(layer.self_attn, of_attention)
        assert subblock_parameters(ffn, config) == parameters(layer.mlp, of_ffn)
    outside = parameters(model) - parameters(model.model.layers)
    assert embedding_parameters(config) == outside


@pytest.mark.parametrize("name", CONFIGS)
def test_tensor_names_and_shapes_equal_transformers(name: str) -> None:
    config = ParentConfig.from_dict(CONFIGS[name], name=name)
    layer = reference_model(name).model.layers[0]
    for subblock, own, module in (
        ("attention", config.attention, layer.self_attn),
        ("ffn", config.ffn, layer.mlp),
    ):
        expected = {key: tuple(weight.shape) for key, weight in module.named_parameters()}
        shapes = parse_variant(subblock, own).tensors(config)
        for fused, parts in config.family.fused.items():
            rows = [shapes.pop(f"{part}.weight") for part in parts if f"{part}.weight" in shapes]
            if rows:
                shapes[f"{fused}.weight"] = (sum(out for out, _ in rows), config.hidden_size)
        if config.family.stacked_experts:  # of which transformers has (experts, in, out)
            shapes = {
                key.replace("gate.", "router.") if key.startswith("gate.") else key: shape[:1]
                + shape[:0:-1]
                for key, shape in shapes.items()
            }
        assert shapes == expected


def nemotron(shared_data: Path, name: str) -> tuple[dict[str, Any], ArchitectureSpec, ParentConfig]:
    child = json.loads((shared_data / "nemotron" / f"{name}.json").read_text())
    parent = "Llama-3.1-405B" if "253B" in name else "Llama-3.1-70B"
    config = ParentConfig.from_dict(
        CONFIGS[parent]
        | {"hidden_size": child["hidden_size"], "head_dim": child["head_dim"]}
        | {"num_attention_heads": child["num_attention_heads"]},
        name=parent,
    )
    pairs = [
        (
            f"gqa_{layer['num_kv_heads']}" if layer["attn"] == "gqa" else layer["attn"],
            f"mlp_{layer['intermediate_size']}" if layer["ffn"] == "ffn" else layer["ffn"],
        )
        for layer in child["layers"]
    ]
    return child, ArchitectureSpec.of(parent, pairs), config


@pytest.mark.parametrize("name", NEMOTRON)
def test_published_children(shared_data: Path, name: str) -> None:
    child, spec, config = nemotron(shared_data, name)
    assert len(spec.blocks) == child["num_hidden_layers"]
    assert architecture_parameters(spec, config) == NEMOTRON[name] == child["total_params"]
    attention = [subblock_parameters(block.attention_variant, config) for block in spec.blocks]
    ffn = [subblock_parameters(block.ffn_variant, config) for block in spec.blocks]
    assert attention == [layer["attn_params"] for layer in child["layers"]]
    assert ffn == [layer["ffn_params"] for layer in child["layers"]]
    assert (sum(attention), sum(ffn)) == (child["attn_params"], child["ffn_params"])
    final_norm = child["hidden_size"]
    assert embedding_parameters(config) == child["embed_plus_head_params"] + final_norm


@pytest.mark.parametrize("name", NEMOTRON)
def test_kv_of_published_children(shared_data: Path, name: str) -> None:
    child, spec, config = nemotron(shared_data, name)
    values = sum(kv_values_per_token(block.attention_variant, config) for block in spec.blocks)
    assert values * 1 == child["kv_bytes_per_token_fp8"]
    assert values * 2 == child["kv_bytes_per_token_bf16"]


@pytest.mark.parametrize("name", [name for name in NEMOTRON if "253B" not in name])
def test_published_children_fit_their_parent(shared_data: Path, name: str) -> None:
    _, spec, config = nemotron(shared_data, name)
    spec.check_fits(config)


def test_no_op_and_linear(pico_config: ParentConfig) -> None:
    for subblock in ("attention", "ffn"):
        assert subblock_parameters(parse_variant(subblock, "no_op"), pico_config) == 0
        linear = parse_variant(subblock, "linear")
        assert subblock_parameters(linear, pico_config) == 64 * 64 + 64
        assert kv_values_per_token(linear, pico_config) == 0
    assert kv_values_per_token(parse_variant("attention", "gqa_2"), pico_config) == 2 * 2 * 16
