"""Fewer experts by what they contribute: channel contribution carried over to experts."""

from __future__ import annotations

from puzzle_search.arch import Variant
from puzzle_search.library.initialise.calibration import Calibration, Tensors
from puzzle_search.library.initialise.experts.keep import keep_experts


def gated_output(variant: Variant, calibration: Calibration) -> Tensors:
    """Keep the experts of greatest gate * ||output||, summed over calibration tokens."""
    return keep_experts(variant, calibration, calibration.expert_sums.outputs_X)
