"""Grouped-query attention (Ainslie et al. 2023) with rotary positions, as Llama and Qwen use it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from puzzle_search.arch import Gqa, ParentConfig, Variant
from puzzle_search.model.cache import LayerCache
from puzzle_search.model.rope import RotarySlice, rotate
from puzzle_search.model.subblocks.base import SubblockModule, scaled


class GqaAttention(SubblockModule):
    """Causal attention with H query heads over K KV heads; biases, q/k norms and sinks if any."""

    def __init__(self, variant: Variant, config: ParentConfig) -> None:
        assert isinstance(variant, Gqa)
        super().__init__(config)
        self.kv_heads = variant.kv_heads
        self.group_size = config.num_heads // variant.kv_heads
        self.head_dim = config.head_dim
        self.window = variant.window(config)
        self.query_scale = config.scales.query
        self.norms_all_heads = config.family.qk_norm == "all"
        hidden, query = config.hidden_size, config.num_heads * config.head_dim
        kv = variant.kv_heads * config.head_dim
        self.q_proj = nn.Linear(hidden, query, bias=config.qkv_bias)
        self.k_proj = nn.Linear(hidden, kv, bias=config.qkv_bias)
        self.v_proj = nn.Linear(hidden, kv, bias=config.qkv_bias)
        self.o_proj = nn.Linear(query, hidden, bias=config.output_bias)
        self.sinks = nn.Parameter(torch.empty(config.num_heads)) if config.family.sinks else None
        self.q_norm = self.k_norm = None
        if config.qk_norm:
            sizes = (query, kv) if self.norms_all_heads else (config.head_dim, config.head_dim)
            self.q_norm, self.k_norm = (nn.RMSNorm(size, eps=config.rms_norm_eps) for size in sizes)

    def mix(
        self, x_BLD: torch.Tensor, rotary: RotarySlice, cache: LayerCache | None
    ) -> torch.Tensor:
        """Attend from the new tokens to all so far, or to those in the window."""
        out: torch.Tensor = self.o_proj(self.heads(x_BLD, rotary, cache))
        return out

    def heads(
        self, x_BLD: torch.Tensor, rotary: RotarySlice, cache: LayerCache | None
    ) -> torch.Tensor:
        """What the query heads attended to, (B, L, H * E), from the subblock's inputs."""
        batch, length, _ = x_BLD.shape
        q_BHLE = self._split(self.q_proj(x_BLD), self.q_norm)
        k_BKLE = self._split(self.k_proj(x_BLD), self.k_norm)
        v_BKSE = self._split(self.v_proj(x_BLD), None)
        q_BHLE = scaled(rotate(q_BHLE, rotary), self.query_scale)
        k_BKSE = rotate(k_BKLE, rotary)
        if cache is not None:
            k_BKSE, v_BKSE = cache.extend(k_BKSE, v_BKSE)
        attended_BHLE = self._attend(q_BHLE, k_BKSE, v_BKSE)
        return attended_BHLE.transpose(1, 2).reshape(batch, length, -1)

    def _split(self, x_BLX: torch.Tensor, norm: nn.Module | None) -> torch.Tensor:
        """Heads (B, heads, L, E) of a projection, normed over all of them or each by itself."""
        if norm is not None and self.norms_all_heads:
            x_BLX = norm(x_BLX)
        x_BLHE = x_BLX.unflatten(-1, (-1, self.head_dim))
        if norm is not None and not self.norms_all_heads:
            x_BLHE = norm(x_BLHE)
        heads_BHLE: torch.Tensor = x_BLHE.transpose(1, 2)
        return heads_BHLE

    def _attend(
        self, q_BHLE: torch.Tensor, k_BKSE: torch.Tensor, v_BKSE: torch.Tensor
    ) -> torch.Tensor:
        batch, _, length, _ = q_BHLE.shape
        if self.window is not None:
            read = self.window + length - 1
            k_BKSE, v_BKSE = k_BKSE[:, :, -read:], v_BKSE[:, :, -read:]
        context, scale = k_BKSE.shape[2], self.head_dim**-0.5
        if self.sinks is not None:
            q_BHLE, k_BKSE, v_BKSE = with_sinks(q_BHLE, k_BKSE, v_BKSE, self.sinks / scale)
        if length == 1:
            # One new token sees all that is left: the heads of a group become rows of one query, so
            # that each KV head is read once and never repeated.
            q_BKGE = q_BHLE.reshape(batch, self.kv_heads, self.group_size, -1)
            attended = F.scaled_dot_product_attention(q_BKGE, k_BKSE, v_BKSE, scale=scale)
            return attended.view_as(q_BHLE)[..., : self.head_dim]
        mask_LS = None
        is_cut = self.window is not None and context > self.window
        if context != length or is_cut or self.sinks is not None:
            mask_LS = visible(length, context, self.window, q_BHLE.device)
        if mask_LS is not None and self.sinks is not None:
            mask_LS = F.pad(mask_LS, (1, 0), value=True)
        attended = F.scaled_dot_product_attention(
            q_BHLE,
            k_BKSE,
            v_BKSE,
            attn_mask=mask_LS,
            is_causal=mask_LS is None,
            scale=scale,
            enable_gqa=True,
        )
        return attended[..., : self.head_dim]


def with_sinks(
    q_BHLE: torch.Tensor, k_BKSE: torch.Tensor, v_BKSE: torch.Tensor, sinks_H: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Attention with one more key before all others, whose value is zero (Xiao et al. 2023).

    Queries and keys get one more component: of queries the head's sink, of the new key 1, of all
    others 0, so that the new key's product with a query is the sink.
    """
    sinks_BHL1 = sinks_H.to(q_BHLE.dtype).view(1, -1, 1, 1).expand(*q_BHLE.shape[:3], 1)
    key_BK1E = F.pad(torch.zeros_like(k_BKSE[:, :, :1]), (0, 1), value=1.0)
    return (
        torch.cat([q_BHLE, sinks_BHL1], dim=-1),
        torch.cat([key_BK1E, F.pad(k_BKSE, (0, 1))], dim=2),
        F.pad(v_BKSE, (0, 1, 1, 0)),
    )


def visible(length: int, context: int, window: int | None, device: torch.device) -> torch.Tensor:
    """Which of ``context`` tokens each of the last ``length`` attends to, (L, S)."""
    ones_LS = torch.ones(length, context, dtype=torch.bool, device=device)
    mask_LS = ones_LS.tril(diagonal=context - length)
    return mask_LS if window is None else mask_LS.triu(diagonal=context - length - window + 1)
