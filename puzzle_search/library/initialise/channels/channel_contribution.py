"""A narrower FFN of the channels that contribute most (Puzzle, section 3.2)."""

from __future__ import annotations

from puzzle_search.arch import Variant
from puzzle_search.library.initialise.calibration import Calibration, Tensors
from puzzle_search.library.initialise.channels.keep import keep_channels


def channel_contribution(variant: Variant, calibration: Calibration) -> Tensors:
    """Keep the channels i of greatest mean |X_i| * ||W_down[:, i]|| over calibration tokens."""
    tensors = calibration.tensors
    scores = calibration.activity * tensors["down_proj.weight"].norm(dim=0)
    return keep_channels(variant, tensors, scores)
