"""What every subblock module does."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import nn

from puzzle_search.arch import ParentConfig
from puzzle_search.model.cache import LayerCache
from puzzle_search.model.rope import RotarySlice


class SubblockModule(nn.Module, ABC):
    """A pre-norm residual subblock: ``x + mix(norm(x))``."""

    def __init__(self, config: ParentConfig) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(
        self, x_BLD: torch.Tensor, rotary: RotarySlice, cache: LayerCache | None
    ) -> torch.Tensor:
        """Apply the subblock with its residual connection."""
        return x_BLD + self.mix(self.norm(x_BLD), rotary, cache)

    @abstractmethod
    def mix(
        self, x_BLD: torch.Tensor, rotary: RotarySlice, cache: LayerCache | None
    ) -> torch.Tensor:
        """The subblock's own contribution, from normed input, both (B, L, D).

        Args:
            x_BLD: normed hidden states of the new tokens.
            rotary: cosines and sines of the new positions.
            cache: keys and values of earlier tokens, extended in place; None for a full pass.
        """
