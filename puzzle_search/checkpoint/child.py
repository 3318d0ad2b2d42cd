"""The child's ``config.json``: what serving engines read as ``nemotron-nas`` (DeciLM).

``block_configs`` holds one entry a block. A width w is written as the ratio ``ffn_mult`` from
which engines compute ``ceil256(int(2 * ffn_mult * hidden / 3))``, so widths must be multiples of
256. The parent's config is kept verbatim under ``puzzle_search.parent_config``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from puzzle_search.arch import (
    ArchitectureSpec,
    Gqa,
    Linear,
    Mlp,
    NoOp,
    ParentConfig,
    Variant,
)
from puzzle_search.errors import InputError
from puzzle_search.files import check_keys, read_json

MODEL_TYPE = "nemotron-nas"
_WIDTH_MULTIPLE = 256
_KEPT = (
    "bos_token_id",
    "eos_token_id",
    "hidden_act",
    "hidden_size",
    "initializer_range",
    "max_position_embeddings",
    "num_attention_heads",
    "rms_norm_eps",
    "rope_parameters",
    "rope_scaling",
    "rope_theta",
    "tie_word_embeddings",
    "vocab_size",
)


def child_config(config: ParentConfig, spec: ArchitectureSpec, *, dtype: str) -> dict[str, Any]:
    """The ``config.json`` of a child.

    Raises:
        InputError: an FFN width is not a multiple of 256.
    """
    raw = config.raw
    kept = {key: raw[key] for key in _KEPT if key in raw}
    return {
        "architectures": ["DeciLMForCausalLM"],
        "model_type": MODEL_TYPE,
        "torch_dtype": dtype,
        **kept,
        **_both_rope_forms(raw),
        "head_dim": config.head_dim,
        "num_hidden_layers": len(spec.blocks),
        "num_key_value_heads": None,
        "intermediate_size": None,
        "attention_bias": config.qkv_bias,
        "mlp_bias": config.mlp_bias,
        "block_configs": [
            {
                "attention": _attention_entry(block.attention_variant, config),
                "ffn": _ffn_entry(block.ffn_variant, config),
            }
            for block in spec.blocks
        ],
        "puzzle_search": {"parent": spec.parent, "parent_config": dict(raw)},
    }


def _both_rope_forms(raw: Mapping[str, Any]) -> dict[str, Any]:
    """``rope_theta`` and ``rope_scaling`` as engines read them, ``rope_parameters`` as of v5."""
    parameters = raw.get("rope_parameters")
    if parameters is None:
        theta, scaling = raw.get("rope_theta", 10000.0), raw.get("rope_scaling")
        parameters = {"rope_type": "default", **(scaling or {}), "rope_theta": theta}
    scaling = {key: value for key, value in parameters.items() if key != "rope_theta"}
    default = scaling.get("rope_type", "default") == "default"
    return {
        "rope_theta": parameters.get("rope_theta", 10000.0),
        "rope_scaling": None if default else scaling,
        "rope_parameters": dict(parameters),
    }


def _attention_entry(variant: Variant, config: ParentConfig) -> dict[str, Any]:
    return {
        "n_heads_in_group": config.num_heads // variant.kv_heads
        if isinstance(variant, Gqa)
        else None,
        "no_op": isinstance(variant, NoOp),
        "replace_with_linear": isinstance(variant, Linear),
    }


def _ffn_entry(variant: Variant, config: ParentConfig) -> dict[str, Any]:
    multiplier = None
    if isinstance(variant, Mlp):
        multiplier = 3 * variant.intermediate_size / (2 * config.hidden_size)
        if _width(multiplier, config.hidden_size) != variant.intermediate_size:
            raise InputError(
                f"{variant}: widths in a nemotron-nas checkpoint are multiples of "
                f"{_WIDTH_MULTIPLE}, {variant.intermediate_size} is not",
                remedy=f"keep FFN widths in the search space to multiples of {_WIDTH_MULTIPLE}",
            )
    return {
        "ffn_mult": multiplier,
        "no_op": isinstance(variant, NoOp),
        "replace_with_linear": isinstance(variant, Linear),
    }


def _width(multiplier: float, hidden_size: int) -> int:
    """FFN width as DeciLM computes it."""
    return -(-int(2 * multiplier * hidden_size / 3) // _WIDTH_MULTIPLE) * _WIDTH_MULTIPLE


def read_model_config(folder: str | Path) -> tuple[ParentConfig, ArchitectureSpec]:
    """The parent configuration and architecture of a checkpoint folder, parent or child.

    Raises:
        InputError: no config, or one of a kind that is not supported.
    """
    file = Path(folder) / "config.json"
    raw = read_json(file, remedy="name a checkpoint folder")
    if raw.get("model_type") != MODEL_TYPE:
        config = ParentConfig.from_file(file)
        return config, ArchitectureSpec.identity(config)
    blocks = raw.get("block_configs")
    if not isinstance(blocks, list) or not blocks:
        raise InputError(f"{file}: block_configs is missing", remedy="write the child again")
    parent, parent_raw = _parent_of(raw, file)
    config = ParentConfig.from_dict(parent_raw, name=parent, where=str(file))
    pairs = [
        _read_block(entry, config, f"{file}, block {number}") for number, entry in enumerate(blocks)
    ]
    return config, ArchitectureSpec.of(parent, pairs)


def _parent_of(raw: dict[str, Any], file: Path) -> tuple[str, dict[str, Any]]:
    """Name and config of the parent: as written by this package, or told from the child's own."""
    own = raw.get("puzzle_search")
    if own is not None:
        check_keys(own, f"{file}: puzzle_search", required={"parent", "parent_config"})
        return str(own["parent"]), own["parent_config"]
    hidden, heads = raw.get("hidden_size"), raw.get("num_attention_heads")
    if not isinstance(hidden, int) or not isinstance(heads, int):
        raise InputError(f"{file}: hidden_size or num_attention_heads is missing", remedy="add it")
    groups = [b["attention"].get("n_heads_in_group") for b in raw["block_configs"]]
    multipliers = [b["ffn"].get("ffn_mult") for b in raw["block_configs"]]
    kept = {key: raw[key] for key in (*_KEPT, "attention_bias", "mlp_bias") if key in raw}
    shape = {
        "model_type": "llama",
        "num_hidden_layers": len(raw["block_configs"]),
        "num_key_value_heads": heads // min(group for group in groups if group),
        "intermediate_size": max(_width(m, hidden) for m in multipliers if m),
    }
    return str(raw.get("_name_or_path", file.parent.name)), kept | shape


def _read_block(entry: object, config: ParentConfig, where: str) -> tuple[str, str]:
    check_keys(entry, where, required={"attention", "ffn"}, optional={"parallel_blocks"})
    assert isinstance(entry, dict)
    attention, ffn = entry["attention"], entry["ffn"]
    if attention.get("no_op"):
        chosen_attention: Variant = NoOp()
    elif attention.get("replace_with_linear"):
        chosen_attention = Linear()
    else:
        chosen_attention = Gqa(config.num_heads // int(attention["n_heads_in_group"]))
    if ffn.get("no_op"):
        chosen_ffn: Variant = NoOp()
    elif ffn.get("replace_with_linear"):
        chosen_ffn = Linear()
    else:
        chosen_ffn = Mlp(_width(float(ffn["ffn_mult"]), config.hidden_size))
    return str(chosen_attention), str(chosen_ffn)
