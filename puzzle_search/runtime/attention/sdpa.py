"""Attention by torch's own scaled-dot-product attention, on any device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from puzzle_search.model.subblocks.gqa import visible

_LEAST_BLOCK = 128  # queries that attend together under a window, at the least


class SdpaDecode:
    """Decode attention over the cache up to the longest sequence, masked where lengths differ.

    What is masked must hold numbers, such as zeros: a weight of zero does not silence a NaN. A
    captured call goes on attending to as many positions, masked or not, as ``prepare`` was last
    told before the capture.
    """

    is_capturable = False

    def __init__(self) -> None:
        self._longest = 0
        self._ragged = False

    def prepare(self, lengths: Sequence[int]) -> None:
        """Remember the longest length, and whether there are others."""
        self._longest = max(lengths)
        self._ragged = min(lengths) < self._longest

    def __call__(
        self,
        q_BHE: torch.Tensor,
        keys_BSKE: torch.Tensor,
        values_BSKE: torch.Tensor,
        lengths_B: torch.Tensor,
    ) -> torch.Tensor:
        """See `DecodeAttention`."""
        batch, _, head_dim = q_BHE.shape
        k_BKSE = keys_BSKE[:, : self._longest].transpose(1, 2).to(q_BHE.dtype)
        v_BKSE = values_BSKE[:, : self._longest].transpose(1, 2).to(q_BHE.dtype)
        # The heads of a group become rows of one query: a KV head is read once, never repeated.
        q_BKGE = q_BHE.view(batch, k_BKSE.shape[1], -1, head_dim)
        mask_B11S = None
        if self._ragged:
            positions_S = torch.arange(self._longest, device=q_BHE.device)
            mask_B11S = (positions_S < lengths_B[:, None])[:, None, None]
        attended_BKGE = F.scaled_dot_product_attention(q_BKGE, k_BKSE, v_BKSE, attn_mask=mask_B11S)
        return attended_BKGE.reshape(q_BHE.shape)


def prefill_attention(
    q_BLHE: torch.Tensor, k_BSKE: torch.Tensor, v_BSKE: torch.Tensor, window: int | None = None
) -> torch.Tensor:
    """Causal attention of the last L of S positions to all of them, or to those in a window.

    Args:
        q_BLHE: queries; heads of one group lie together, H = K * group size.
        k_BSKE: keys of every position so far, those of the queries included.
        v_BSKE: as keys.
        window: most positions that one attends to, its own among them.

    Returns:
        What the heads attended to, (B, L, H, E), in the dtype of ``q_BLHE``.
    """
    length, context = q_BLHE.shape[1], k_BSKE.shape[1]
    if window is not None and context > window:
        return _in_window(q_BLHE, k_BSKE, v_BSKE, window)
    q_BHLE = q_BLHE.transpose(1, 2)
    k_BKSE = k_BSKE.transpose(1, 2).to(q_BLHE.dtype)
    v_BKSE = v_BSKE.transpose(1, 2).to(q_BLHE.dtype)
    grouped = q_BHLE.shape[1] != k_BKSE.shape[1]
    if length == context:
        attended_BHLE = F.scaled_dot_product_attention(
            q_BHLE, k_BKSE, v_BKSE, is_causal=True, enable_gqa=grouped
        )
    else:
        # Imported where it is used: torch's whole compiler comes with it.
        from torch.nn.attention.bias import causal_lower_right

        attended_BHLE = F.scaled_dot_product_attention(
            q_BHLE,
            k_BKSE,
            v_BKSE,
            attn_mask=causal_lower_right(length, context),
            enable_gqa=grouped,
        )
    return attended_BHLE.transpose(1, 2)


def _in_window(
    q_BLHE: torch.Tensor, k_BSKE: torch.Tensor, v_BSKE: torch.Tensor, window: int
) -> torch.Tensor:
    """As `prefill_attention`, in blocks of queries that each read little more than a window."""
    length, before = q_BLHE.shape[1], k_BSKE.shape[1] - q_BLHE.shape[1]
    block = max(window, _LEAST_BLOCK)
    grouped = q_BLHE.shape[2] != k_BSKE.shape[2]
    parts = []
    for first in range(0, length, block):
        end = min(first + block, length)
        read = slice(max(0, before + first - window + 1), before + end)
        mask_LS = visible(end - first, read.stop - read.start, window, q_BLHE.device)
        attended_BHLE = F.scaled_dot_product_attention(
            q_BLHE[:, first:end].transpose(1, 2),
            k_BSKE[:, read].transpose(1, 2).to(q_BLHE.dtype),
            v_BSKE[:, read].transpose(1, 2).to(q_BLHE.dtype),
            attn_mask=mask_LS,
            enable_gqa=grouped,
        )
        parts.append(attended_BHLE.transpose(1, 2))
    return torch.cat(parts, dim=1)
