"""Attention in float64, one sequence at a time: what every back end is held to."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def attention(
    q_LHE: torch.Tensor, k_SKE: torch.Tensor, v_SKE: torch.Tensor, *, causal: bool = False
) -> torch.Tensor:
    """KV heads repeated, everything in float64; the queries are the last positions."""
    q, k, v = (x.double().transpose(0, 1) for x in (q_LHE, k_SKE, v_SKE))
    group = q.shape[0] // k.shape[0]
    k, v = k.repeat_interleave(group, 0), v.repeat_interleave(group, 0)
    length, context = q.shape[1], k.shape[1]
    mask = torch.ones(length, context, dtype=torch.bool, device=q.device)
    if causal:
        mask = mask.tril(context - length)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(0, 1)


def decode(
    q_BHE: torch.Tensor, keys_BSKE: torch.Tensor, values_BSKE: torch.Tensor, lengths: list[int]
) -> torch.Tensor:
    """One new token of each sequence."""
    return torch.stack(
        [
            attention(q[None], k[:n].float(), v[:n].float())[0]
            for q, k, v, n in zip(q_BHE, keys_BSKE, values_BSKE, lengths, strict=True)
        ]
    )
