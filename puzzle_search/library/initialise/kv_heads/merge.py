"""What the initialisers of fewer KV heads share: weighted sums of neighbouring heads."""

from __future__ import annotations

import torch

from puzzle_search.arch import Gqa, Variant
from puzzle_search.errors import InputError
from puzzle_search.library.initialise.calibration import Calibration, Tensors

# A norm of keys over all heads has weights for each; one of each head has the same for all.
_MERGED = ("k_proj.weight", "v_proj.weight", "k_proj.bias", "v_proj.bias", "k_norm.weight")


def heads_per_group(variant: Variant, calibration: Calibration) -> int:
    """KV heads of the parent that become one.

    Raises:
        InputError: the parent's heads cannot be shared out evenly.
    """
    assert isinstance(variant, Gqa)
    own = calibration.config.num_kv_heads
    if own % variant.kv_heads:
        raise InputError(
            f"{variant} cannot be begun from {own} KV heads",
            remedy=f"put divisors of {own} into the search space",
        )
    return own // variant.kv_heads


def merge_kv_heads(calibration: Calibration, weights_GN: torch.Tensor) -> Tensors:
    """Merge groups of neighbouring KV heads; queries and output stay the parent's.

    Args:
        calibration: the parent's attention.
        weights_GN: weight of each of the N heads of the G groups; the weights of a group sum to 1.
    """
    head_dim = calibration.config.head_dim
    tensors = calibration.tensors
    for name in _MERGED:
        if name in tensors and tensors[name].shape[0] == weights_GN.numel() * head_dim:
            rest = tensors[name].shape[1:]
            heads = tensors[name].view(*weights_GN.shape, head_dim, *rest)
            weights = weights_GN.to(heads).view(*weights_GN.shape, *[1] * (heads.dim() - 2))
            tensors[name] = (heads * weights).sum(dim=1).reshape(-1, *rest)
    return tensors
