"""A narrower FFN of the channels that contribute most (Puzzle, section 3.2)."""

from __future__ import annotations

from puzzle_search.arch import Mlp, Variant
from puzzle_search.library.initialise.calibration import Calibration, Tensors
from puzzle_search.model.subblocks.mlp import SwigluMlp


def keep_contributing_channels(variant: Variant, calibration: Calibration) -> dict[str, Tensors]:
    """Keep the channels i of greatest mean |X_i| * ||W_down[:, i]|| over calibration tokens."""
    assert isinstance(variant, Mlp) and isinstance(calibration.module, SwigluMlp)
    tensors = calibration.tensors
    activity = calibration.module.channels(calibration.normed_TD).abs().mean(dim=0)
    contribution = activity * tensors["down_proj.weight"].norm(dim=0)
    kept = contribution.topk(variant.intermediate_size).indices.sort().values
    chosen = dict(tensors)
    for name in ("gate_proj.weight", "up_proj.weight", "gate_proj.bias", "up_proj.bias"):
        if name in tensors:
            chosen[name] = tensors[name][kept]
    chosen["down_proj.weight"] = tensors["down_proj.weight"][:, kept]
    return {"channel_contribution": chosen}
