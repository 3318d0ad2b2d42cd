"""Fewer KV heads by merging the parent's in proportion to what they contribute."""

from __future__ import annotations

from puzzle_search.arch import Variant
from puzzle_search.library.initialise.calibration import Calibration, Tensors
from puzzle_search.library.initialise.kv_heads.merge import heads_per_group, merge_kv_heads


def activation_weighted(variant: Variant, calibration: Calibration) -> Tensors:
    """Average neighbouring KV heads, weighted by contribution over calibration tokens.

    A head contributes the sum of mean |X_i| * ||W_o[:, i]|| over the channels i of its query
    heads: channel contribution (Puzzle, section 3.2) carried over to attention.
    """
    norms = calibration.tensors["o_proj.weight"].norm(dim=0)
    by_head = (calibration.activity * norms).view(calibration.config.num_kv_heads, -1).sum(dim=1)
    groups_GN = by_head.view(-1, heads_per_group(variant, calibration))
    return merge_kv_heads(calibration, groups_GN / groups_GN.sum(dim=1, keepdim=True))
