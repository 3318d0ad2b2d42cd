"""Fewer KV heads by keeping the first of each group (Ainslie et al. 2023, section 3.1)."""

from __future__ import annotations

import torch

from puzzle_search.arch import Variant
from puzzle_search.library.initialise.calibration import Calibration, Tensors
from puzzle_search.library.initialise.kv_heads.merge import heads_per_group, merge_kv_heads


def first_head(variant: Variant, calibration: Calibration) -> Tensors:
    """Keep the first of each group of neighbouring KV heads."""
    merged = heads_per_group(variant, calibration)
    groups = calibration.config.num_kv_heads // merged
    return merge_kv_heads(calibration, torch.eye(1, merged).expand(groups, merged))
