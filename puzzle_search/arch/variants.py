"""What a subblock may become, and the canonical strings that name it.

A variant kind says which weights it owns (name to shape), and everything else that needs no
torch follows from that: parameter counts, weight bytes, checkpoint validation. Its module and its
initialiser live under the same kind name in ``puzzle_search.model`` and ``puzzle_search.library``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from puzzle_search.arch.config import ParentConfig
from puzzle_search.arch.moe import MOE_FORMS, Moe, check_moe, parse_moe
from puzzle_search.errors import InputError

Subblock = Literal["attention", "ffn"]
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Gqa:
    """Grouped-query attention with ``kv_heads`` KV heads; query heads stay the parent's."""

    kv_heads: int
    kind = "gqa"

    def __str__(self) -> str:
        return f"gqa_{self.kv_heads}"

    def tensors(self, config: ParentConfig) -> dict[str, Shape]:
        """Weights by Llama tensor name within the subblock, as (out, in) shapes."""
        hidden = config.hidden_size
        query, kv = config.num_heads * config.head_dim, self.kv_heads * config.head_dim
        shapes: dict[str, Shape] = {
            "q_proj.weight": (query, hidden),
            "k_proj.weight": (kv, hidden),
            "v_proj.weight": (kv, hidden),
            "o_proj.weight": (hidden, query),
        }
        if config.qkv_bias:
            shapes |= {"q_proj.bias": (query,), "k_proj.bias": (kv,), "v_proj.bias": (kv,)}
        if config.output_bias:
            shapes["o_proj.bias"] = (hidden,)
        if config.qk_norm:
            shapes |= {"q_norm.weight": (config.head_dim,), "k_norm.weight": (config.head_dim,)}
        return shapes


@dataclass(frozen=True)
class Mlp:
    """SwiGLU feed-forward network of a given intermediate size."""

    intermediate_size: int
    kind = "mlp"

    def __str__(self) -> str:
        return f"mlp_{self.intermediate_size}"

    def tensors(self, config: ParentConfig) -> dict[str, Shape]:
        """Weights by Llama tensor name within the subblock, as (out, in) shapes."""
        hidden, width = config.hidden_size, self.intermediate_size
        shapes: dict[str, Shape] = {
            "gate_proj.weight": (width, hidden),
            "up_proj.weight": (width, hidden),
            "down_proj.weight": (hidden, width),
        }
        if config.mlp_bias:
            shapes |= {
                "gate_proj.bias": (width,),
                "up_proj.bias": (width,),
                "down_proj.bias": (hidden,),
            }
        return shapes


@dataclass(frozen=True)
class Linear:
    """One hidden-to-hidden matrix in place of the whole subblock."""

    kind = "linear"

    def __str__(self) -> str:
        return "linear"

    def tensors(self, config: ParentConfig) -> dict[str, Shape]:
        """The one matrix, without bias."""
        return {"linear.weight": (config.hidden_size, config.hidden_size)}


@dataclass(frozen=True)
class NoOp:
    """The subblock is left out, its norm with it: the residual stream passes through."""

    kind = "no_op"

    def __str__(self) -> str:
        return "no_op"

    def tensors(self, config: ParentConfig) -> dict[str, Shape]:
        """No weights."""
        return {}


STOCK_WIDTH_MULTIPLE = 256
"""FFN widths that a ``nemotron-nas`` checkpoint can say, and with it every stock engine."""

Variant = Gqa | Mlp | Moe | Linear | NoOp

_SIZED: dict[Subblock, tuple[str, type[Gqa] | type[Mlp]]] = {
    "attention": ("gqa", Gqa),
    "ffn": ("mlp", Mlp),
}
_UNSIZED: dict[str, Variant] = {"linear": Linear(), "no_op": NoOp()}


def parse_variant(subblock: Subblock, text: str) -> Variant:
    """Parse the canonical string of a variant.

    Raises:
        InputError: the string names no variant of that subblock.
    """
    if text in _UNSIZED:
        return _UNSIZED[text]
    moe = parse_moe(text) if subblock == "ffn" else None
    if moe is not None:
        return moe
    prefix, sized = _SIZED[subblock]
    match = re.fullmatch(rf"{prefix}_([1-9][0-9]{{0,8}})", text)
    if match is None:
        forms = f"{prefix}_<size>" + (f", {MOE_FORMS}" if subblock == "ffn" else "")
        raise InputError(
            f"{text!r} is not a variant of {subblock}", remedy=f"use {forms}, linear or no_op"
        )
    return sized(int(match.group(1)))


def check_variant(variant: Variant, config: ParentConfig) -> None:
    """Check that a variant fits a parent.

    Raises:
        InputError: KV heads do not divide the parent's, or a size exceeds the parent's.
    """
    if isinstance(variant, Gqa):
        # Each new head is made of as many of the parent's, so that it divides the query heads too.
        if config.num_kv_heads % variant.kv_heads:
            divisors = [n for n in range(1, config.num_kv_heads + 1) if not config.num_kv_heads % n]
            raise InputError(
                f"{variant} does not fit the {config.num_kv_heads} KV heads of {config.name}",
                remedy=f"use a divisor of them: {', '.join(f'gqa_{n}' for n in divisors)}",
            )
    elif isinstance(variant, Moe):
        check_moe(variant, config)
    elif isinstance(variant, Mlp) and config.experts is not None:
        raise InputError(
            f"{variant} does not fit {config.name}, whose FFNs are {config.ffn}",
            remedy=f"use {MOE_FORMS}, linear or no_op",
        )
    elif isinstance(variant, Mlp) and variant.intermediate_size > config.intermediate_size:
        raise InputError(
            f"{variant} is wider than the FFN of {config.name} ({config.intermediate_size})",
            remedy="name a width up to the parent's",
        )
