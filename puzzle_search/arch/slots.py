"""A child's subblocks in the blocks of an engine's file.

A block of ours and of an engine is an attention slot, then an FFN slot; what a block lacks is not
computed. So a child is the row of its subblocks alone, and these may be put into other blocks
without changing what is computed: attention whose FFN was dropped shares a block with the next FFN
that has no attention, and a block without both is no block.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from puzzle_search.arch.spec import ArchitectureSpec
from puzzle_search.arch.variants import Gqa, Linear, Mlp, NoOp, Subblock, Variant


@dataclass(frozen=True, kw_only=True)
class Part:
    """A subblock of the child that computes something, by where its tensors lie."""

    subblock: Subblock
    block: int
    variant: Variant

    def __str__(self) -> str:
        return f"{self.subblock} {self.variant} of block {self.block}"


@dataclass(frozen=True, kw_only=True)
class Block:
    """A block of the engine's file: what stands in its two slots, None where nothing does."""

    attention: Part | None = None
    ffn: Part | None = None


def parts_of(spec: ArchitectureSpec) -> list[Part]:
    """The subblocks of a child in order, those left out left out."""
    return [
        Part(subblock=subblock, block=number, variant=variant)
        for number, choice in enumerate(spec.blocks)
        for subblock, variant in (
            _slot("attention", choice.attention_variant),
            _slot("ffn", choice.ffn_variant),
        )
        if not isinstance(variant, NoOp)
    ]


def _slot(subblock: Subblock, variant: Variant) -> tuple[Subblock, Variant]:
    return subblock, variant


def in_blocks(parts: list[Part], *, linear_as: Subblock) -> list[Block]:
    """Put subblocks into as few blocks as their order allows.

    Args:
        parts: the child's subblocks.
        linear_as: the slot in which the engine can compute a matrix.
    """
    blocks: list[Block] = []
    for part in parts:
        linear = isinstance(part.variant, Linear)
        slot = linear_as if linear else part.subblock
        if slot == "attention":
            blocks.append(Block(attention=part))
        elif blocks and blocks[-1].ffn is None:
            blocks[-1] = replace(blocks[-1], ffn=part)
        else:
            blocks.append(Block(ffn=part))
    return blocks


def uniform_sizes(blocks: list[Block]) -> tuple[int, int] | None:
    """KV heads and FFN width that every block has; None where they differ or a slot is empty."""
    sizes = {
        (block.attention.variant.kv_heads, block.ffn.variant.intermediate_size)
        if block.attention is not None
        and block.ffn is not None
        and isinstance(block.attention.variant, Gqa)
        and isinstance(block.ffn.variant, Mlp)
        else None
        for block in blocks
    }
    return sizes.pop() if len(sizes) == 1 else None


def told_blocks(spec: ArchitectureSpec, blocks: list[Block]) -> list[str]:
    """A line for readers where the engine's blocks are not the child's."""
    if len(blocks) == len(spec.blocks):
        return []
    return [f"{len(spec.blocks)} blocks of the child become {len(blocks)}"]
