"""What the initialisers of fewer or narrower experts share: the parent's of greatest score."""

from __future__ import annotations

import torch

from puzzle_search.arch import Moe, Variant
from puzzle_search.library.initialise.calibration import Calibration, Tensors


def keep_experts(variant: Variant, calibration: Calibration, scores_X: torch.Tensor) -> Tensors:
    """Keep the experts of greatest score, in the parent's order, and their rows of the router.

    Of narrower ones each keeps its own channels of greatest mean gate * |X_i| * ||W_down[:, i]||,
    over calibration tokens that pass it.

    Args:
        variant: the smaller mixture.
        calibration: the parent's.
        scores_X: one an expert of the parent.
    """
    assert isinstance(variant, Moe)
    kept_X = scores_X.topk(variant.experts).indices.sort().values
    tensors = calibration.tensors
    for name in tensors.keys() - {"norm.weight"}:
        tensors[name] = tensors[name][kept_X]
    if variant.width is not None:
        activity_XI = calibration.expert_sums.channels_XI[kept_X]
        _narrow(tensors, activity_XI * tensors["experts.down_proj"].norm(dim=1), variant.width)
    return tensors


def _narrow(tensors: Tensors, scores_XI: torch.Tensor, width: int) -> None:
    """Keep each expert's channels of greatest score, in the parent's order."""
    kept_XW = scores_XI.topk(width).indices.sort().values
    down_XDI = tensors["experts.down_proj"]
    rows_XWD = kept_XW[:, :, None].expand(-1, -1, down_XDI.shape[1])
    for name, rows in (
        ("experts.gate_up_proj", rows_XWD),
        ("experts.gate_up_proj_bias", kept_XW),
    ):
        if name in tensors:
            halves = tensors[name].chunk(2, dim=1)
            tensors[name] = torch.cat([half.gather(1, rows) for half in halves], dim=1)
    tensors["experts.down_proj"] = down_XDI.gather(2, rows_XWD.transpose(1, 2)).contiguous()
