"""temporary"""

from __future__ import annotations
from collections.abc import Sequence
import torch
import torch.nn.functional as F
from torch.nn.attention.bias import causal_lower_right


class SdpaDecode:
    def prepare(self, lengths: Sequence[int]) -> None:
        self._longest = max(lengths)
        self._ragged = min(lengths) != self._longest

    def __call__(self, q_BHE, keys_BSKE, values_BSKE, lengths_B):
        B, H, E = q_BHE.shape
        K = keys_BSKE.shape[2]
        k = keys_BSKE[:B, : self._longest].to(q_BHE.dtype).transpose(1, 2)
        v = values_BSKE[:B, : self._longest].to(q_BHE.dtype).transpose(1, 2)
        mask = None
        if self._ragged:
            mask = (torch.arange(self._longest, device=q_BHE.device) < lengths_B[:, None])[
                :, None, None
            ]
        return F.scaled_dot_product_attention(
            q_BHE.view(B, K, H // K, E), k, v, attn_mask=mask
        ).reshape(B, H, E)


def prefill_attention(q_BLHE, k_BSKE, v_BSKE):
    q, k, v = (x.transpose(1, 2) for x in (q_BLHE, k_BSKE, v_BSKE))
    L, S = q.shape[2], k.shape[2]
    if L == S:
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    else:
        out = F.scaled_dot_product_attention(
            q, k, v, attn_mask=causal_lower_right(L, S), enable_gqa=True
        )
    return out.transpose(1, 2)
