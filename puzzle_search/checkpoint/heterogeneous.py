"""Children that other tools wrote under their parent's own ``model_type``.

Puzzletron (Model-Optimizer) writes one ``block_configs`` entry a block, with
``num_key_value_heads`` and ``intermediate_size`` or ``no_op``; transformers knows
``per_layer_config``, a mapping of layer numbers to what differs there, with ``skip`` for what is
left out. gpt-oss-puzzle-88B has a type of its own, and one entry a block of
``num_local_experts`` and ``sliding_window``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from puzzle_search.arch import ArchitectureSpec, ParentConfig, Subblock
from puzzle_search.errors import InputError
from puzzle_search.files import check_keys

_Pairs = list[tuple[str, str]]
_SIZE: dict[Subblock, tuple[str, str]] = {
    "attention": ("num_key_value_heads", "gqa"),
    "ffn": ("intermediate_size", "mlp"),
}
# Names of the module in a decoder layer, by transformers and by Puzzletron.
_SKIPPED: dict[str, Subblock] = {
    "attention": "attention",
    "self_attn": "attention",
    "ffn": "ffn",
    "mlp": "ffn",
}
GPT_OSS_PUZZLE = "gpt_oss_puzzle"
_UNSIZED = {"no_op": "no_op", "replace_with_linear": "linear"}


def is_heterogeneous(raw: Mapping[str, Any]) -> bool:
    """Whether a config has keys that make its layers differ."""
    return bool(raw.get("block_configs") or raw.get("per_layer_config"))


def told_parent(raw: Mapping[str, Any], file: Path) -> tuple[str, dict[str, Any]] | None:
    """Name and config of the parent, where this package wrote them into the child.

    Raises:
        InputError: they are written in another way.
    """
    own = raw.get("puzzle_search")
    if own is None:
        return None
    where, optional = f"{file}: puzzle_search", {"layers", "weights"}
    check_keys(own, where, required={"parent", "parent_config"}, optional=optional)
    if not isinstance(own["parent"], str) or not isinstance(own["parent_config"], dict):
        raise InputError(
            f"{file}: puzzle_search names no parent or no parent_config",
            remedy="write the child again",
        )
    return own["parent"], own["parent_config"]


def read_heterogeneous(
    raw: Mapping[str, Any], name: str, file: Path, told: tuple[str, dict[str, Any]] | None
) -> tuple[ParentConfig, ArchitectureSpec]:
    """The parent and every layer's variants.

    Args:
        raw: ``config.json`` of the child.
        name: of a parent that the child does not name.
        file: for messages.
        told: name and config of the parent, where the child tells them; else it is taken to have
            the largest sizes of any layer.

    Raises:
        InputError: a layer asks for what is not supported, or the layers are not those counted.
    """
    layers = raw.get("num_hidden_layers")
    if raw.get("model_type") == GPT_OSS_PUZZLE:
        own, pairs = _of_gpt_oss_puzzle(raw, file)
    elif raw.get("block_configs"):
        own, pairs = _sized(raw, _of_blocks(raw["block_configs"], file))
    else:
        own, pairs = _sized(raw, _of_overrides(raw, file))
    if len(pairs) != layers:
        raise InputError(
            f"{file}: {len(pairs)} blocks are described for {layers} layers",
            remedy="use a config that describes every layer",
        )
    name, own = told or (name, own)
    config = ParentConfig.from_dict(own, name=name, where=str(file))
    spec = ArchitectureSpec.of(name, pairs)
    spec.check_fits(config)
    return config, spec


def _sized(raw: Mapping[str, Any], pairs: _Pairs) -> tuple[dict[str, Any], _Pairs]:
    """The config of a parent that has the largest size of any layer in all."""
    sizes = {
        key: max((_size_of(pair[n]) for pair in pairs), default=0) or raw.get(key)
        for n, (key, _) in enumerate(_SIZE.values())
    }
    return _without_layers(raw) | sizes, pairs


def _without_layers(raw: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in raw.items() if k not in ("block_configs", "per_layer_config")}


def _of_gpt_oss_puzzle(raw: Mapping[str, Any], file: Path) -> tuple[dict[str, Any], _Pairs]:
    """The config of a gpt-oss whose layers have the shortest window where the child has it."""
    blocks = raw.get("block_configs")
    if not isinstance(blocks, list):
        raise _wrong(file, f"block_configs is {blocks!r:.80}")
    windows, experts = [], []
    for number, block in enumerate(blocks):
        if not isinstance(block, dict) or block.keys() != {"num_local_experts", "sliding_window"}:
            raise _wrong(file, f"block {number} is {block!r:.80}")
        window = block["sliding_window"]
        where = f"block {number}: sliding_window"
        windows.append(None if window is None else _whole(window, where, file))
        where = f"block {number}: num_local_experts"
        experts.append(_whole(block["num_local_experts"], where, file))
    shortest = min((window for window in windows if window is not None), default=None)
    kinds = [
        "full_attention" if window is None or window != shortest else "sliding_attention"
        for window in windows
    ]
    parent = {
        "model_type": "gpt_oss",
        "num_local_experts": max(experts),
        "sliding_window": shortest,
        "layer_types": kinds,
    }
    attention = f"gqa_{_whole(raw.get('num_key_value_heads'), 'num_key_value_heads', file)}"
    pairs = [
        (attention if window is None else f"{attention}_window_{window}", f"moe_{count}")
        for window, count in zip(windows, experts, strict=True)
    ]
    return _without_layers(raw) | parent, pairs


def _size_of(variant: str) -> int:
    return int(variant.partition("_")[2]) if variant.startswith(("gqa_", "mlp_")) else 0


def _of_blocks(blocks: Any, file: Path) -> list[tuple[str, str]]:
    if not isinstance(blocks, list):
        raise _wrong(file, f"block_configs is {blocks!r}")
    pairs = []
    for number, block in enumerate(blocks):
        where = f"block {number}"
        if not isinstance(block, dict) or not {"attention", "ffn"} <= block.keys():
            raise _wrong(file, f"{where} has no attention and ffn")
        # What else a block may have (parallel blocks) is left empty where it is not used.
        other = [k for k, v in block.items() if k not in ("attention", "ffn") and v]
        if other:
            raise _wrong(file, f"{where}: {', '.join(other)}")
        pair = (_entry(block[subblock], subblock, where, file) for subblock in _SIZE)
        pairs.append((next(pair), next(pair)))
    return pairs


def _entry(entry: Any, subblock: Subblock, where: str, file: Path) -> str:
    key, prefix = _SIZE[subblock]
    if not isinstance(entry, dict):
        raise _wrong(file, f"{where}: {subblock} is {entry!r}")
    for name, value in entry.items():
        if name not in (key, *_UNSIZED, "hidden_act") and value not in (None, False):
            raise _wrong(file, f"{where}: {subblock} has {name}")
    for flag, variant in _UNSIZED.items():
        if entry.get(flag):
            return variant
    return f"{prefix}_{_whole(entry.get(key), f'{where}: {key}', file)}"


def _of_overrides(raw: Mapping[str, Any], file: Path) -> list[tuple[str, str]]:
    layers, given = raw.get("num_hidden_layers"), raw["per_layer_config"]
    if not isinstance(given, dict) or type(layers) is not int:
        raise _wrong(file, "per_layer_config is no mapping of layer numbers")
    by_layer = {str(key): value for key, value in given.items()}
    unknown = sorted(by_layer.keys() - {str(layer) for layer in range(layers)})
    if unknown:
        raise _wrong(file, f"per_layer_config names layer {unknown[0]} of {layers}")
    pairs = []
    for layer in range(layers):
        override, where = by_layer.get(str(layer), {}), f"layer {layer}"
        if not isinstance(override, dict) or not isinstance(override.get("skip", []), list):
            raise _wrong(file, f"{where} is {override!r}")
        skip = override.get("skip", [])
        other = override.keys() - {"skip", *(key for key, _ in _SIZE.values())}
        if other or any(name not in _SKIPPED for name in skip):
            raise _wrong(file, f"{where}: {sorted(other) or skip}")
        left_out = {_SKIPPED[name] for name in skip}
        pair = (
            "no_op"
            if subblock in left_out
            else f"{prefix}_{_whole(override.get(key, raw.get(key)), f'{where}: {key}', file)}"
            for subblock, (key, prefix) in _SIZE.items()
        )
        pairs.append((next(pair), next(pair)))
    return pairs


def _whole(value: Any, what: str, file: Path) -> int:
    if type(value) is not int or value < 1:
        raise _wrong(file, f"{what} is {value!r}")
    return value


def _wrong(file: Path, what: str) -> InputError:
    return InputError(
        f"{file}: {what}: not supported",
        remedy="layers may differ in KV heads and FFN width, or leave attention or FFN out; those "
        "of gpt_oss_puzzle in num_local_experts and sliding_window",
    )
