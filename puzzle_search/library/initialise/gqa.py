"""Fewer KV heads by mean-pooling the parent's (Ainslie et al. 2023; Puzzle, section 3.2)."""

from __future__ import annotations

import torch

from puzzle_search.arch import Gqa, Variant
from puzzle_search.library.initialise.calibration import Calibration, Tensors

_POOLED = ("k_proj.weight", "v_proj.weight", "k_proj.bias", "v_proj.bias")


def pool_kv_heads(variant: Variant, calibration: Calibration) -> dict[str, Tensors]:
    """Average neighbouring KV heads; queries and output stay the parent's."""
    assert isinstance(variant, Gqa)
    head_dim = calibration.config.head_dim
    tensors = calibration.tensors
    pooled = {
        name: _pool(tensors[name], variant.kv_heads, head_dim)
        for name in _POOLED
        if name in tensors
    }
    return {"mean_pool": tensors | pooled}


def _pool(tensor: torch.Tensor, kv_heads: int, head_dim: int) -> torch.Tensor:
    rest = tensor.shape[1:]
    return tensor.view(kv_heads, -1, head_dim, *rest).mean(dim=1).reshape(-1, *rest)
