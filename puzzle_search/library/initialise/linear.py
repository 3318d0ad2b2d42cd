"""One matrix for a whole subblock: the product of its own matrices, or least squares."""

from __future__ import annotations

import torch

from puzzle_search.arch import Variant
from puzzle_search.library.initialise.calibration import Calibration, Tensors

# Ridge as a fraction of the mean squared input, so that few calibration tokens stay safe.
_RIDGE = 1e-3


def linear_candidates(variant: Variant, calibration: Calibration) -> dict[str, Tensors]:
    """The product of the parent's matrices (Puzzle, section 3.2), and a least-squares fit.

    For attention the product is W_o W_v, as if each token attended to itself alone; for an FFN
    W_down W_up, as if every gate were open. The fit minimises the squared error of the subblock's
    output over calibration tokens.
    """
    tensors = calibration.tensors
    product = (
        _output_times_value(tensors, calibration)
        if calibration.subblock == "attention"
        else tensors["down_proj.weight"] @ tensors["up_proj.weight"]
    )
    norm = {"norm.weight": tensors["norm.weight"]}
    return {
        "product": norm | {"linear.weight": product},
        "least_squares": norm | {"linear.weight": _least_squares(calibration)},
    }


def _output_times_value(tensors: Tensors, calibration: Calibration) -> torch.Tensor:
    config = calibration.config
    value = tensors["v_proj.weight"].view(config.num_kv_heads, config.head_dim, -1)
    group = config.num_heads // config.num_kv_heads
    repeated = value.repeat_interleave(group, dim=0).flatten(0, 1)
    return tensors["o_proj.weight"] @ repeated


def _least_squares(calibration: Calibration) -> torch.Tensor:
    x, y = calibration.normed_TD.double(), calibration.output_TD.double()
    gram = x.T @ x
    ridge = _RIDGE * gram.diagonal().mean()
    eye = torch.eye(gram.shape[0], dtype=gram.dtype, device=gram.device)
    solution: torch.Tensor = torch.linalg.solve(gram + ridge * eye, x.T @ y)
    return solution.T.to(calibration.normed_TD.dtype)
