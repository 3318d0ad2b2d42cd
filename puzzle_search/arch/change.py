"""What became of a subblock: kept, windowed, made smaller, linear, or dropped."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from puzzle_search.arch.config import ParentConfig
from puzzle_search.arch.moe import Moe
from puzzle_search.arch.variants import (
    Gqa,
    Linear,
    Mlp,
    NoOp,
    Subblock,
    Variant,
    parse_variant,
)

Change = Literal["kept", "windowed", "reduced", "linear", "dropped"]


def size_of(variant: Variant) -> int:
    """KV heads, FFN width or experts; 0 for linear and no-op."""
    if isinstance(variant, Gqa):
        return variant.kv_heads
    if isinstance(variant, Moe):
        return variant.experts
    return variant.intermediate_size if isinstance(variant, Mlp) else 0


def parent_size(subblock: Subblock, config: ParentConfig) -> int:
    """KV heads, FFN width or experts of the parent's own subblock."""
    own = config.attention if subblock == "attention" else config.ffn
    return size_of(parse_variant(subblock, own))


@dataclass(frozen=True, kw_only=True)
class SubblockChange:
    """What became of a subblock.

    Attributes:
        variant: its canonical string.
        change: ``kept``, ``windowed`` (attention to fewer tokens, whatever its KV heads),
            ``reduced`` (fewer KV heads, narrower FFN; fewer or narrower experts, or fewer for a
            token; weights in a type of their own), ``linear`` or ``dropped``.
        size: KV heads, FFN width or experts that are left; 0 for linear and dropped.
        fraction: ``size`` by that of the parent.
    """

    variant: str
    change: Change
    size: int
    fraction: float

    @classmethod
    def of(cls, variant: Variant, parent_size: int, own: str = "") -> SubblockChange:
        """What a variant leaves of a parent subblock of that size, which it may be itself."""
        size = size_of(variant)
        within = isinstance(variant, Moe) and not (variant.top_k is variant.width is None)
        kept = size == parent_size and not within and variant.weights is None
        change: Change = "kept" if kept else "reduced"
        if str(variant) == own:
            change = "kept"
        elif isinstance(variant, Gqa) and variant.own_window is not None:
            change = "windowed"
        elif isinstance(variant, Linear):
            change = "linear"
        elif isinstance(variant, NoOp):
            change = "dropped"
        return cls(variant=str(variant), change=change, size=size, fraction=size / parent_size)
