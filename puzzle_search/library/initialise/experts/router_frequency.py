"""Fewer experts by how often the router picks them."""

from __future__ import annotations

from puzzle_search.arch import Variant
from puzzle_search.library.initialise.calibration import Calibration, Tensors
from puzzle_search.library.initialise.experts.keep import keep_experts


def router_frequency(variant: Variant, calibration: Calibration) -> Tensors:
    """Keep the experts that most calibration tokens pass."""
    return keep_experts(variant, calibration, calibration.expert_sums.tokens_X)
