"""One matrix for a subblock: the one nearest to it on calibration tokens."""

from __future__ import annotations

import torch

from puzzle_search.arch import Variant
from puzzle_search.library.initialise.calibration import Calibration, Tensors

# Ridge as a fraction of the mean squared input, so that few calibration tokens stay safe.
_RIDGE = 1e-3


def least_squares(variant: Variant, calibration: Calibration) -> Tensors:
    """Minimise the squared error of the subblock's output over calibration tokens."""
    gram, cross = calibration.least_squares_sums
    ridged = gram.clone()
    ridged.diagonal().add_(_RIDGE * gram.diagonal().mean())
    solution: torch.Tensor = torch.linalg.solve(ridged, cross)
    norm = calibration.tensors["norm.weight"]
    return {"norm.weight": norm, "linear.weight": solution.T.float().contiguous()}
