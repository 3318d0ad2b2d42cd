"""What a subblock may become, and the canonical strings that name it.

A variant kind says which weights it owns (name to shape), and everything else that needs no
torch follows from that: parameter counts, weight bytes, checkpoint validation. Its module and its
initialiser live under the same kind name in ``puzzle_search.model`` and ``puzzle_search.library``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import AfterValidator

from puzzle_search.arch.config import ParentConfig
from puzzle_search.arch.moe import MOE_FORMS, Moe, check_moe, parse_moe
from puzzle_search.arch.weight_types import Weighted, with_weights
from puzzle_search.errors import InputError

Subblock = Literal["attention", "ffn"]
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Gqa(Weighted):
    """Grouped-query attention with ``kv_heads`` KV heads; query heads stay the parent's.

    ``own_window`` is a sliding window that the parent has not, or not so short.
    """

    kv_heads: int
    own_window: int | None = None
    kind = "gqa"

    @property
    def shape(self) -> str:
        """KV heads, and window if it has one."""
        window = "" if self.own_window is None else f"_window_{self.own_window}"
        return f"gqa_{self.kv_heads}{window}"

    def window(self, config: ParentConfig) -> int | None:
        """Tokens that a query attends to at most, its own among them; None where all before it."""
        return self.own_window or config.sliding_window

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
        if config.family.sinks:
            shapes["sinks"] = (config.num_heads,)
        if config.qk_norm:
            whole = config.family.qk_norm == "all"
            shapes["q_norm.weight"] = (query if whole else config.head_dim,)
            shapes["k_norm.weight"] = (kv if whole else config.head_dim,)
        return shapes


@dataclass(frozen=True)
class Mlp(Weighted):
    """SwiGLU feed-forward network of a given intermediate size."""

    intermediate_size: int
    kind = "mlp"

    @property
    def shape(self) -> str:
        """Intermediate size."""
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
class Linear(Weighted):
    """One hidden-to-hidden matrix in place of the whole subblock."""

    kind = "linear"

    @property
    def shape(self) -> str:
        """The only one."""
        return "linear"

    def tensors(self, config: ParentConfig) -> dict[str, Shape]:
        """The one matrix, without bias."""
        return {"linear.weight": (config.hidden_size, config.hidden_size)}


@dataclass(frozen=True)
class NoOp:
    """The subblock is left out, its norm with it: the residual stream passes through."""

    kind = "no_op"
    weights = None

    def __str__(self) -> str:
        return "no_op"

    def tensors(self, config: ParentConfig) -> dict[str, Shape]:
        """No weights."""
        return {}


STOCK_WIDTH_MULTIPLE = 256
"""FFN widths that a ``nemotron-nas`` checkpoint can say, and with it every stock engine."""

Variant = Gqa | Mlp | Moe | Linear | NoOp

_SIZE = "([1-9][0-9]{0,8})"
_SIZED: dict[Subblock, tuple[str, str]] = {
    "attention": (
        f"gqa_{_SIZE}(?:_window_{_SIZE})?",
        "gqa_<KV heads>, gqa_<KV heads>_window_<tokens>",
    ),
    "ffn": (f"mlp_{_SIZE}", f"mlp_<width>, {MOE_FORMS}"),
}
_UNSIZED: dict[str, Variant] = {"linear": Linear(), "no_op": NoOp()}


def parse_variant(subblock: Subblock, text: str) -> Variant:
    """Parse the canonical string of a variant: a shape such as ``gqa_2``, or ``gqa_2@q4_0``.

    Raises:
        InputError: the string names no variant of that subblock, or no type of weights.
    """
    shape, at, weights = text.partition("@")
    variant = _parse_shape(subblock, shape)
    if variant is None:
        raise InputError(
            f"{text!r} is not a variant of {subblock}",
            remedy=f"use {_SIZED[subblock][1]}, linear or no_op",
        )
    return with_weights(variant, weights) if at else variant


def _parse_shape(subblock: Subblock, text: str) -> Variant | None:
    if text in _UNSIZED:
        return _UNSIZED[text]
    moe = parse_moe(text) if subblock == "ffn" else None
    if moe is not None:
        return moe
    match = re.fullmatch(_SIZED[subblock][0], text)
    if match is None:
        return None
    sizes = [int(size) for size in match.groups() if size]
    return Gqa(*sizes) if subblock == "attention" else Mlp(*sizes)


AttentionName = Annotated[str, AfterValidator(lambda name: _own_or_known("attention", name))]
FfnName = Annotated[str, AfterValidator(lambda name: _own_or_known("ffn", name))]
"""Names in a file that pydantic checks; an empty one means the parent's own."""


def _own_or_known(subblock: Subblock, name: str) -> str:
    return name and str(parse_variant(subblock, name))


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
        longest = config.sliding_window or config.max_position_embeddings
        if variant.own_window is not None and variant.own_window >= longest:
            raise InputError(
                f"{variant} bounds nothing: {config.name} attends to {longest:,} tokens at most",
                remedy=f"name a shorter window, or gqa_{variant.kv_heads}",
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
