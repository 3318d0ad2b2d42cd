"""What the initialisers of a narrower FFN share: the parent's channels of greatest score."""

from __future__ import annotations

import torch

from puzzle_search.arch import Mlp, Variant
from puzzle_search.library.initialise.calibration import Tensors


def keep_channels(variant: Variant, tensors: Tensors, scores: torch.Tensor) -> Tensors:
    """Keep the channels of greatest score, in the parent's order.

    Args:
        variant: the narrower FFN.
        tensors: the parent's.
        scores: one a channel of the parent, (I,).
    """
    assert isinstance(variant, Mlp)
    kept = scores.topk(variant.intermediate_size).indices.sort().values
    chosen = dict(tensors)
    for name in ("gate_proj.weight", "up_proj.weight", "gate_proj.bias", "up_proj.bias"):
        if name in tensors:
            chosen[name] = tensors[name][kept]
    chosen["down_proj.weight"] = tensors["down_proj.weight"][:, kept].contiguous()
    return chosen
