"""SwiGLU feed-forward network (Shazeer 2020)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from puzzle_search.arch import Mlp, ParentConfig, Variant
from puzzle_search.model.cache import LayerCache
from puzzle_search.model.rope import RotarySlice
from puzzle_search.model.subblocks.base import SubblockModule


class SwigluMlp(SubblockModule):
    """``down(silu(gate(x)) * up(x))`` of the variant's intermediate size."""

    def __init__(self, variant: Variant, config: ParentConfig) -> None:
        assert isinstance(variant, Mlp)
        super().__init__(config)
        hidden, width = config.hidden_size, variant.intermediate_size
        self.gate_proj = nn.Linear(hidden, width, bias=config.mlp_bias)
        self.up_proj = nn.Linear(hidden, width, bias=config.mlp_bias)
        self.down_proj = nn.Linear(width, hidden, bias=config.mlp_bias)

    def channels(self, x_BLD: torch.Tensor) -> torch.Tensor:
        """Intermediate activations (B, L, intermediate size) of normed input."""
        channels: torch.Tensor = F.silu(self.gate_proj(x_BLD)) * self.up_proj(x_BLD)
        return channels

    def mix(
        self, x_BLD: torch.Tensor, rotary: RotarySlice, cache: LayerCache | None
    ) -> torch.Tensor:
        """Apply the network to each token."""
        out: torch.Tensor = self.down_proj(self.channels(x_BLD))
        return out
