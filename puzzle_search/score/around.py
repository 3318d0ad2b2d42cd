"""What may be replaced around a base: the parent, or a child of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from puzzle_search.arch import (
    ArchitectureSpec,
    ParentConfig,
    Replacement,
    SearchSpace,
    Subblock,
    canonical,
    parse_variant,
)
from puzzle_search.arch.variants import check_variant
from puzzle_search.errors import InputError


def base_blocks(config: ParentConfig, base: ArchitectureSpec | None) -> tuple[Replacement, ...]:
    """Blocks of the base in order, the parent's own subblocks written as empty names.

    Raises:
        InputError: the base is no child of this parent.
    """
    spec = base or ArchitectureSpec.identity(config)
    spec.check_fits(config)
    return tuple(canonical(block.replacement, config) for block in spec.blocks)


def begins_and_ends_with_blocks(replacement: Replacement, base: ArchitectureSpec) -> bool:
    """Whether a replacement can be scored around a base: it covers whole blocks of it."""
    firsts = {block.layers[0] for block in base.blocks}
    lasts = {block.layers[-1] for block in base.blocks}
    return replacement[0] in firsts and replacement[1] in lasts


def replacements_around(
    config: ParentConfig, space: SearchSpace, base: ArchitectureSpec, *, composed: bool = True
) -> Iterator[Replacement]:
    """Everything of a search space that may take the place of a base's blocks.

    The parent's own block is among them where the base has another; what the base has is not.

    Args:
        config: the parent.
        space: variants by layer, and runs.
        base: a child of the parent.
        composed: pairs that differ from the base's block in both subblocks, too.

    Raises:
        InputError: the base is no child of this parent.
    """
    chosen = {(first, last): (a, f) for first, last, a, f in base_blocks(config, base)}
    parents: list[Replacement] = [(layer, layer, "", "") for layer in range(space.num_layers)]
    for first, last, attention, ffn in (*parents, *space.replacements(config)):
        if not begins_and_ends_with_blocks((first, last, attention, ffn), base):
            continue
        own = chosen.get((first, last))
        if own == (attention, ffn):
            continue
        single = own is not None and (own[0] == attention or own[1] == ffn)
        if composed or single or first < last:
            yield first, last, attention, ffn


def check_replacements(
    replacements: Sequence[Replacement], config: ParentConfig, base: ArchitectureSpec | None
) -> list[Replacement]:
    """The replacements, each once, the parent's own subblocks as empty names.

    Raises:
        InputError: one names layers or variants that the parent cannot have, is a run with a
            variant left out, or does not begin and end with blocks of the base.
    """
    spec = base or ArchitectureSpec.identity(config)
    for replacement in replacements:
        first, last, *names = replacement
        where = f"layer {first}" if first == last else f"layers {first}-{last}"
        if not 0 <= first <= last < config.num_layers:
            raise InputError(
                f"{where} cannot be replaced: {config.name} has {config.num_layers} layers",
                remedy=f"name layers within 0-{config.num_layers - 1}",
            )
        subblocks: tuple[Subblock, Subblock] = ("attention", "ffn")
        for subblock, name in zip(subblocks, names, strict=True):
            if name:
                check_variant(parse_variant(subblock, name), config)
            elif first < last:
                raise InputError(
                    f"one block in the place of {where} has no {subblock}",
                    remedy="name both of its variants",
                )
        if not begins_and_ends_with_blocks(replacement, spec):
            raise InputError(
                f"a block of the child stands for some of {where} and for others",
                remedy="replace whole blocks of the child, or score around another child",
            )
    return list(dict.fromkeys(canonical(replacement, config) for replacement in replacements))
