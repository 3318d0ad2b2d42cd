"""One matrix for a subblock: the product of its own matrices (Puzzle, section 3.2)."""

from __future__ import annotations

import torch

from puzzle_search.arch import Variant
from puzzle_search.library.initialise.calibration import Calibration, Tensors


def product(variant: Variant, calibration: Calibration) -> Tensors:
    """Multiply the parent's matrices.

    For attention W_o W_v, as if each token attended to itself alone; for an FFN W_down W_up, as
    if every gate were open; for experts the same, each by its mean gate over calibration tokens.
    """
    tensors = calibration.tensors
    if calibration.subblock == "attention":
        matrix = _output_times_value(tensors, calibration)
    elif calibration.config.experts is not None:
        matrix = _experts_product(tensors, calibration)
    else:
        matrix = tensors["down_proj.weight"] @ tensors["up_proj.weight"]
    return {"norm.weight": tensors["norm.weight"], "linear.weight": matrix}


def _output_times_value(tensors: Tensors, calibration: Calibration) -> torch.Tensor:
    config = calibration.config
    value = tensors["v_proj.weight"].view(config.num_kv_heads, config.head_dim, -1)
    group = config.num_heads // config.num_kv_heads
    repeated = value.repeat_interleave(group, dim=0).flatten(0, 1)
    return tensors["o_proj.weight"] @ repeated


def _experts_product(tensors: Tensors, calibration: Calibration) -> torch.Tensor:
    assert calibration.config.experts is not None
    sums = calibration.expert_sums
    tokens = sums.tokens_X.sum() / calibration.config.experts.top_k
    up_XID = tensors["experts.gate_up_proj"].chunk(2, dim=1)[1]
    down_XDI = tensors["experts.down_proj"] * (sums.gates_X / tokens)[:, None, None]
    return torch.einsum("xoi,xid->od", down_XDI, up_XID)
