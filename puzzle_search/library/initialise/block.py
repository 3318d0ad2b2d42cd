"""Begin one block from one parent block: a single subblock, a pair, or a block for a run."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Mapping

from puzzle_search.arch import Replacement, Subblock, parse_variant
from puzzle_search.checkpoint.block_library import BlockTensors
from puzzle_search.library.initialise.calibration import Calibration
from puzzle_search.library.initialise.registry import initial_candidates


def block_candidates(
    replacement: Replacement,
    layer: int,
    calibrations: Mapping[Subblock, Calibration],
    allowed: Collection[str],
) -> Iterator[tuple[str, BlockTensors]]:
    """Initial tensors of what a replacement names, by name of how they were made.

    Attention and FFN are initialised apart, every method of the one with every method of the
    other. A block for a run of layers begins from one of its parent blocks; the caller asks for
    each of them.

    Args:
        replacement: what to begin.
        layer: the parent block to begin from.
        calibrations: its two subblocks.
        allowed: names of initialisers; none for all.
    """
    subblocks: tuple[Subblock, Subblock] = ("attention", "ffn")
    first, last, *names = replacement
    parts = [(part, name) for part, name in zip(subblocks, names, strict=True) if name]
    by_part = [
        initial_candidates(parse_variant(part, name), calibrations[part], allowed).items()
        for part, name in parts
    ]
    origin = f" of layer {layer}" if first < last else ""
    for chosen in itertools.product(*by_part):
        method = "+".join(method for method, _ in chosen)
        yield (
            method + origin,
            {part: tensors for (part, _), (_, tensors) in zip(parts, chosen, strict=True)},
        )
