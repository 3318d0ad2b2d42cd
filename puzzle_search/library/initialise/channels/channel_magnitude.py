"""A narrower FFN of the channels with the largest weights (Han et al. 2015); needs no text."""

from __future__ import annotations

from puzzle_search.arch import Variant
from puzzle_search.library.initialise.calibration import Calibration, Tensors
from puzzle_search.library.initialise.channels.keep import keep_channels


def channel_magnitude(variant: Variant, calibration: Calibration) -> Tensors:
    """Keep the channels of greatest L2 norm over their weights in gate, up and down."""
    tensors = calibration.tensors
    squares = tensors["down_proj.weight"].square().sum(dim=0)
    for name in ("gate_proj.weight", "up_proj.weight"):
        squares = squares + tensors[name].square().sum(dim=1)
    return keep_channels(variant, tensors, squares)
