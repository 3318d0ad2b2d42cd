"""Initialise a variant from the parent's subblock without training: one file per variant kind.

Every initialiser takes the parent's tensors (by local name), what the parent's subblock saw and
gave on calibration tokens, and returns candidates by method name; the one of least block loss
is kept.
"""

from __future__ import annotations

from collections.abc import Callable

from puzzle_search.arch import Variant
from puzzle_search.library.initialise.calibration import Calibration, Tensors
from puzzle_search.library.initialise.gqa import pool_kv_heads
from puzzle_search.library.initialise.linear import linear_candidates
from puzzle_search.library.initialise.mlp import keep_contributing_channels

_INITIALISERS: dict[str, Callable[[Variant, Calibration], dict[str, Tensors]]] = {
    "gqa": pool_kv_heads,
    "mlp": keep_contributing_channels,
    "linear": linear_candidates,
}


def initial_candidates(variant: Variant, calibration: Calibration) -> dict[str, Tensors]:
    """Initial tensors of a variant by the name of the method that made them."""
    return _INITIALISERS[variant.kind](variant, calibration)


__all__ = ["Calibration", "initial_candidates"]
