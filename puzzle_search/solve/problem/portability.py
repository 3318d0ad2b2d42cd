"""Which architectures stock serving engines load, by their published code.

See docs/architecture.md for the table; nothing here was checked by running an engine.
"""

from __future__ import annotations

from collections.abc import Callable

from puzzle_search.arch import Gqa, Linear, Mlp, NoOp, ParentConfig, parse_variant
from puzzle_search.arch.variants import STOCK_WIDTH_MULTIPLE
from puzzle_search.choices import LoadingEngine
from puzzle_search.errors import InputError

# (attention, ffn, first layer, parent) -> whether the engine loads such a block there.
_Rule = Callable[[str, str, int, ParentConfig], bool]


def allows(
    engine: LoadingEngine, attention: str, ffn: str, layer: int, config: ParentConfig
) -> bool:
    """Whether an engine loads a child with this block in place of this layer.

    Raises:
        InputError: the engine is not known.
    """
    if engine not in _RULES:
        raise InputError(
            f"engine {engine!r} is not known", remedy=f"use one of {', '.join(_RULES)}"
        )
    variant = parse_variant("ffn", ffn)
    if isinstance(variant, Mlp) and variant.intermediate_size % STOCK_WIDTH_MULTIPLE:
        return False
    return _RULES[engine](attention, ffn, layer, config)


def _everything(attention: str, ffn: str, layer: int, config: ParentConfig) -> bool:
    return True


def _vllm(attention: str, ffn: str, layer: int, config: ParentConfig) -> bool:
    chosen = parse_variant("attention", attention)
    has_attention = isinstance(chosen, Gqa) or (isinstance(chosen, NoOp) and layer > 0)
    return has_attention and not isinstance(parse_variant("ffn", ffn), Linear)


def _sglang(attention: str, ffn: str, layer: int, config: ParentConfig) -> bool:
    same_heads = attention == config.attention or attention == "no_op"
    return same_heads and _vllm(attention, ffn, layer, config)


def _llama_cpp(attention: str, ffn: str, layer: int, config: ParentConfig) -> bool:
    chosen = parse_variant("ffn", ffn)
    if isinstance(chosen, NoOp):
        return attention == "no_op" and layer < config.num_layers - 1
    return not isinstance(chosen, Linear)


def _mlx(attention: str, ffn: str, layer: int, config: ParentConfig) -> bool:
    # It reads linear subblocks under tensor names of its own.
    return "linear" not in (attention, ffn)


_RULES: dict[LoadingEngine, _Rule] = {
    "trtllm": _everything,
    "vllm": _vllm,
    "sglang": _sglang,
    "llama.cpp": _llama_cpp,
    "mlx-lm": _mlx,
}
