"""The child's ``config.json``: what serving engines read as ``nemotron-nas`` (DeciLM).

``block_configs`` holds one entry a block. A width w is written as the ratio ``ffn_mult`` from
which engines compute ``ceil256(int(2 * ffn_mult * hidden / 3))``; another width, such as the
29,568 of Qwen2.5-72B, as it is, in ``intermediate_size``; experts are counted in
``num_local_experts``, beside what else differs from the parent's. The parent's config is kept under
``puzzle_search.parent_config``, but for what it says of quantised weights: a child's are not. Types
that its variants name stand in ``puzzle_search.weights``, one pair a block. Where
that format cannot say what the child computes, the type is ``puzzle-search``, so that a stock
engine refuses the child instead of computing it wrongly.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from puzzle_search.arch import (
    ArchitectureSpec,
    BlockChoice,
    Gqa,
    Linear,
    Mlp,
    Moe,
    NoOp,
    ParentConfig,
    Variant,
)
from puzzle_search.arch.families import Scales
from puzzle_search.arch.variants import STOCK_WIDTH_MULTIPLE, check_variant
from puzzle_search.arch.weight_types import with_weights
from puzzle_search.checkpoint.gpt_oss_puzzle import fits_puzzle_format, puzzle_config
from puzzle_search.checkpoint.heterogeneous import (
    is_heterogeneous,
    read_heterogeneous,
    told_parent,
)
from puzzle_search.errors import InputError
from puzzle_search.files import check_keys, read_json

STOCK_TYPE = "nemotron-nas"
OWN_TYPE = "puzzle-search"
# Modules that a folder brings along, for ``trust_remote_code``.
CONFIGURATION_MODULE = "configuration_decilm"
MODEL_MODULE = "modeling_puzzle_search"

_FFN_SIZES = ("ffn_mult", "intermediate_size", "num_local_experts")
# Of experts, where a child's are not as its parent's.
_EXPERT_SIZES = ("num_experts_per_tok", "moe_intermediate_size")
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
    """The ``config.json`` of a child."""
    raw = config.raw
    kept = {key: raw[key] for key in _KEPT if key in raw}
    unquantised = {key: value for key, value in raw.items() if key != "quantization_config"}
    own = {"parent": spec.parent, "parent_config": unquantised} | _runs(spec) | _weights(spec)
    if fits_puzzle_format(config, spec):
        return puzzle_config(unquantised, spec) | {"torch_dtype": dtype, "puzzle_search": own}
    stock = fits_stock_format(config) and all(
        _fits_stock_block(block, config.hidden_size) for block in spec.blocks
    )
    # Engines know DeciLM's blocks but not its configuration: the folder brings it along.
    brought = {"auto_map": {"AutoConfig": f"{CONFIGURATION_MODULE}.DeciLMConfig"}} if stock else {}
    return {
        "architectures": ["DeciLMForCausalLM" if stock else "PuzzleSearchForCausalLM"],
        "model_type": STOCK_TYPE if stock else OWN_TYPE,
        **brought,
        "torch_dtype": dtype,
        **kept,
        **both_rope_forms(raw),
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
        "puzzle_search": own,
    }


def _runs(spec: ArchitectureSpec) -> dict[str, Any]:
    """The parent layers of every block, where a block stands for several."""
    layers = [list(block.layers) for block in spec.blocks]
    return {"layers": layers} if len(layers) < spec.num_layers else {}


def _weights(spec: ArchitectureSpec) -> dict[str, Any]:
    """Types of every block's weights, None for the serving precision's, if any is named."""
    types = [[block.attention_variant.weights, block.ffn_variant.weights] for block in spec.blocks]
    return {"weights": types} if any(map(any, types)) else {}


def fits_stock_format(config: ParentConfig) -> bool:
    """Whether DeciLM's code computes children of this parent as this package does.

    It has no q/k norms, no sliding window, no layers without rope and no multipliers, no sinks,
    norms before each subblock, and one switch for the biases of q, k, v and o.
    """
    return (
        not config.qk_norm
        and not config.family.norm_after
        and not config.family.sinks
        and not config.unrotated
        and config.scales == Scales()
        and config.sliding_window is None
        and config.qkv_bias == config.output_bias
    )


def both_rope_forms(raw: Mapping[str, Any]) -> dict[str, Any]:
    """``rope_theta`` and ``rope_scaling`` as engines read them, ``rope_parameters`` as of v5."""
    given = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    theta = given.get("rope_theta", raw.get("rope_theta", 10000.0))
    # Old configs say `type` for `rope_type`.
    rope_type = given.get("rope_type", given.get("type", "default"))
    scaling = {key: value for key, value in given.items() if key not in ("rope_theta", "type")}
    scaling |= {"rope_type": rope_type}
    return {
        "rope_theta": theta,
        "rope_scaling": None if rope_type == "default" else scaling,
        "rope_parameters": scaling | {"rope_theta": theta},
    }


def _attention_entry(variant: Variant, config: ParentConfig) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "n_heads_in_group": None,
        "no_op": isinstance(variant, NoOp),
        "replace_with_linear": isinstance(variant, Linear),
    }
    if isinstance(variant, Gqa):
        entry["n_heads_in_group"] = config.num_heads // variant.kv_heads
        if variant.own_window is not None:
            entry["window_length"] = variant.own_window
    return entry


def _ffn_entry(variant: Variant, config: ParentConfig) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "ffn_mult": None,
        "no_op": isinstance(variant, NoOp),
        "replace_with_linear": isinstance(variant, Linear),
    }
    if isinstance(variant, Mlp):
        if _fits_multiplier(variant, config.hidden_size):
            return entry | {"ffn_mult": _multiplier(variant, config.hidden_size)}
        return entry | {"intermediate_size": variant.intermediate_size}
    if isinstance(variant, Moe):
        sizes = zip(_EXPERT_SIZES, (variant.top_k, variant.width), strict=True)
        own = {key: size for key, size in sizes if size is not None}
        return entry | {"num_local_experts": variant.experts} | own
    return entry


def _fits_stock_block(block: BlockChoice, hidden_size: int) -> bool:
    """Whether DeciLM's entry of a block can say it: no windows, experts, types, odd widths."""
    attention, ffn = block.attention_variant, block.ffn_variant
    if attention.weights or ffn.weights:
        return False
    if isinstance(attention, Gqa) and attention.own_window is not None:
        return False
    if isinstance(ffn, Mlp):
        return _fits_multiplier(ffn, hidden_size)
    return not isinstance(ffn, Moe)


def _multiplier(ffn: Mlp, hidden_size: int) -> float:
    return 3 * ffn.intermediate_size / (2 * hidden_size)


def _fits_multiplier(ffn: Mlp, hidden_size: int) -> bool:
    return _width(_multiplier(ffn, hidden_size), hidden_size) == ffn.intermediate_size


def _width(multiplier: float, hidden_size: int) -> int:
    """FFN width as DeciLM computes it."""
    widest = int(2 * multiplier * hidden_size / 3)
    return -(-widest // STOCK_WIDTH_MULTIPLE) * STOCK_WIDTH_MULTIPLE


def read_model_config(folder: str | Path) -> tuple[ParentConfig, ArchitectureSpec]:
    """The parent configuration and architecture of a checkpoint, parent or child of any tool.

    Args:
        folder: the checkpoint folder, or its ``config.json``.

    Raises:
        InputError: no config, or one of a kind that is not supported.
    """
    file = Path(folder)
    file = file if file.is_file() else file / "config.json"
    return parse_model_config(read_json(file, remedy="name a checkpoint folder"), file)


def parse_model_config(raw: dict[str, Any], file: Path) -> tuple[ParentConfig, ArchitectureSpec]:
    """The same, of a ``config.json`` that was read from ``file``.

    Raises:
        InputError: as `read_model_config`.
    """
    if raw.get("model_type") not in (STOCK_TYPE, OWN_TYPE):
        if is_heterogeneous(raw):
            told = told_parent(raw, file)
            return read_heterogeneous(raw, file.resolve().parent.name, file, told)
        config = ParentConfig.from_file(file)
        return config, ArchitectureSpec.identity(config)
    blocks = raw.get("block_configs")
    if not isinstance(blocks, list) or not blocks:
        raise InputError(f"{file}: block_configs is missing", remedy="write the child again")
    hidden, heads = (_size(raw, key, file) for key in ("hidden_size", "num_attention_heads"))
    variants = [
        _read_block(entry, hidden, heads, f"{file}, block {number}")
        for number, entry in enumerate(blocks)
    ]
    parent, parent_raw = _parent_of(raw, variants, file)
    config = ParentConfig.from_dict(parent_raw, name=parent, where=str(file))
    for _, ffn in variants:
        if isinstance(ffn, Moe):  # their tensors have names by the parent's type
            check_variant(ffn, config)
    own = raw.get("puzzle_search") or {}
    layers = _layers(own, len(variants), file)
    variants = _typed(own, variants, file)
    choices = (
        BlockChoice(attention=str(attention), ffn=str(ffn), layers=covered)
        for (attention, ffn), covered in zip(variants, layers, strict=True)
    )
    return config, ArchitectureSpec(parent=parent, blocks=tuple(choices))


def _parent_of(
    raw: dict[str, Any], variants: list[tuple[Variant, Variant]], file: Path
) -> tuple[str, dict[str, Any]]:
    """Name and config of the parent: as written by this package, or told from the child's own."""
    if (told := told_parent(raw, file)) is not None:
        return told
    kept_keys = (*_KEPT, "attention_bias", "head_dim", "mlp_bias")
    kv_heads = [v.kv_heads for pair in variants for v in pair if isinstance(v, Gqa)]
    widths = [v.intermediate_size for pair in variants for v in pair if isinstance(v, Mlp)]
    shape = {
        "model_type": "llama",
        "num_hidden_layers": len(variants),
        # The largest that is left. Where none is, nothing depends on it.
        "num_key_value_heads": max(kv_heads, default=raw["num_attention_heads"]),
        "intermediate_size": max(widths, default=STOCK_WIDTH_MULTIPLE),
    }
    name = str(raw.get("_name_or_path") or file.resolve().parent.name)
    return name, {key: raw[key] for key in kept_keys if key in raw} | shape


def _layers(own: Mapping[str, Any], blocks: int, file: Path) -> list[tuple[int, ...]]:
    """The parent layers that each block stands for."""
    written = own.get("layers", [[layer] for layer in range(blocks)])
    try:
        layers = [tuple(entry) for entry in written]
        flat = [layer for entry in layers for layer in entry]
    except TypeError:
        layers, flat = [], []
    whole = all(layers) and all(type(layer) is int for layer in flat)
    if len(layers) != blocks or not whole or flat != list(range(len(flat))):
        raise InputError(
            f"{file}: puzzle_search names layers {written!r} for {blocks} blocks",
            remedy="write the child again",
        )
    return layers


def _typed(
    own: Mapping[str, Any], variants: list[tuple[Variant, Variant]], file: Path
) -> list[tuple[Variant, Variant]]:
    """The variants with the types of their weights."""
    types = own.get("weights", [[None, None]] * len(variants))
    pairs = isinstance(types, list) and all(isinstance(p, list) and len(p) == 2 for p in types)
    if not pairs or len(types) != len(variants):
        raise InputError(
            f"{file}: puzzle_search names weights {types!r} for {len(variants)} blocks",
            remedy="write the child again",
        )

    def typed(variant: Variant, weights: object) -> Variant:
        return variant if weights is None else with_weights(variant, str(weights))

    return [
        (typed(attention, of_attention), typed(ffn, of_ffn))
        for (attention, ffn), (of_attention, of_ffn) in zip(variants, types, strict=True)
    ]


def _size(raw: Mapping[str, Any], key: str, where: object) -> int:
    value = raw.get(key)
    if type(value) is not int or value < 1:
        raise InputError(
            f"{where}: {key} must be a positive whole number, not {value!r}",
            remedy=f"correct {key}",
        )
    return value


def _read_block(entry: object, hidden: int, heads: int, where: str) -> tuple[Variant, Variant]:
    check_keys(entry, where, required={"attention", "ffn"}, optional={"parallel_blocks"})
    assert isinstance(entry, dict)
    if entry.get("parallel_blocks"):
        raise InputError(f"{where}: parallel_blocks is not supported", remedy="use another child")
    sizes = ("n_heads_in_group",)
    attention = _unsized(
        entry["attention"], sizes, f"{where}, attention", beside=("window_length",)
    )
    if attention is None:
        group = _size(entry["attention"], "n_heads_in_group", f"{where}, attention")
        if heads % group:
            raise InputError(
                f"{where}: n_heads_in_group {group} does not divide the {heads} query heads",
                remedy="correct n_heads_in_group",
            )
        window = None
        if entry["attention"].get("window_length") is not None:
            window = _size(entry["attention"], "window_length", f"{where}, attention")
        attention = Gqa(heads // group, window)
    ffn = _unsized(entry["ffn"], _FFN_SIZES, f"{where}, ffn", beside=_EXPERT_SIZES)
    if ffn is None and entry["ffn"].get("num_local_experts") is not None:
        ffn = _read_experts(entry["ffn"], f"{where}, ffn")
    elif ffn is None and entry["ffn"].get("ffn_mult") is None:
        ffn = Mlp(_size(entry["ffn"], "intermediate_size", f"{where}, ffn"))
    elif ffn is None:
        multiplier = entry["ffn"].get("ffn_mult")
        number = type(multiplier) in (int, float)
        if not number or not 0 < multiplier < 1e6 or not _width(multiplier, hidden):
            raise InputError(
                f"{where}: ffn_mult must be a positive number, not {multiplier!r}",
                remedy="correct ffn_mult",
            )
        ffn = Mlp(_width(multiplier, hidden))
    return attention, ffn


def _read_experts(entry: dict[str, Any], where: str) -> Moe:
    top_k, width = (
        None if entry.get(key) is None else _size(entry, key, where) for key in _EXPERT_SIZES
    )
    return Moe(_size(entry, "num_local_experts", where), top_k, width)


def _unsized(
    entry: object, sizes: tuple[str, ...], where: str, *, beside: tuple[str, ...] = ()
) -> Variant | None:
    """The no-op or linear variant that an entry names; None where its size decides.

    Args:
        entry: of a subblock.
        sizes: keys of which one gives its size.
        where: the file and block, for messages.
        beside: further keys that it may have.
    """
    flags = ("no_op", "replace_with_linear")
    if not isinstance(entry, dict):
        raise InputError(
            f"{where}: {entry!r} is not an object", remedy=f"write {{{sizes[0]}: ...}}"
        )
    given = [size for size in sizes if entry.get(size) is not None]
    if len(given) > 1:
        raise InputError(f"{where}: {' and '.join(given)} are given", remedy="keep one of them")
    for key, value in entry.items():
        if key in flags and type(value) is not bool:
            raise InputError(
                f"{where}: {key} must be true or false, not {value!r}", remedy=f"correct {key}"
            )
        # Sinks, sparsity: published children name them, and leave them empty.
        if key not in (*flags, *sizes, *beside) and value not in (None, False):
            raise InputError(f"{where}: {key} is not supported", remedy="use another child")
    if entry.get("no_op"):
        return NoOp()
    return Linear() if entry.get("replace_with_linear") else None
