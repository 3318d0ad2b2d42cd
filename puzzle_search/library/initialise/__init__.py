"""Initialise a variant from the parent's subblock without training: one file per method.

Every initialiser takes the variant and the parent's subblock with its calibration sums, and
returns tensors by local name. All methods of a variant's kind are tried; the one of least block
error is kept.
"""

from puzzle_search.library.initialise.block import block_candidates
from puzzle_search.library.initialise.calibration import Calibration
from puzzle_search.library.initialise.registry import (
    INITIALISERS,
    check_initialisers,
    initial_candidates,
)

__all__ = [
    "INITIALISERS",
    "Calibration",
    "block_candidates",
    "check_initialisers",
    "initial_candidates",
]
