"""Fewer KV heads by mean-pooling the parent's (Ainslie et al. 2023; Puzzle, section 3.2)."""

from __future__ import annotations

import torch

from puzzle_search.arch import Variant
from puzzle_search.library.initialise.calibration import Calibration, Tensors
from puzzle_search.library.initialise.kv_heads.merge import heads_per_group, merge_kv_heads


def mean_pool(variant: Variant, calibration: Calibration) -> Tensors:
    """Average neighbouring KV heads."""
    merged = heads_per_group(variant, calibration)
    groups = calibration.config.num_kv_heads // merged
    return merge_kv_heads(calibration, torch.full((groups, merged), 1 / merged))
