"""One matrix for a subblock: the product of its own matrices (Puzzle, section 3.2)."""

from __future__ import annotations

import torch

from puzzle_search.arch import Variant
from puzzle_search.library.initialise.calibration import Calibration, Tensors


def product(variant: Variant, calibration: Calibration) -> Tensors:
    """Multiply the parent's matrices.

    For attention W_o W_v, as if each token attended to itself alone; for an FFN W_down W_up, as
    if every gate were open.
    """
    tensors = calibration.tensors
    matrix = (
        _output_times_value(tensors, calibration)
        if calibration.subblock == "attention"
        else tensors["down_proj.weight"] @ tensors["up_proj.weight"]
    )
    return {"norm.weight": tensors["norm.weight"], "linear.weight": matrix}


def _output_times_value(tensors: Tensors, calibration: Calibration) -> torch.Tensor:
    config = calibration.config
    value = tensors["v_proj.weight"].view(config.num_kv_heads, config.head_dim, -1)
    group = config.num_heads // config.num_kv_heads
    repeated = value.repeat_interleave(group, dim=0).flatten(0, 1)
    return tensors["o_proj.weight"] @ repeated
