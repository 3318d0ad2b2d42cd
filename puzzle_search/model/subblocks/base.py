"""What every subblock module does."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import nn

from puzzle_search.arch import ParentConfig
from puzzle_search.model.cache import LayerCache
from puzzle_search.model.rope import RotarySlice


class SubblockModule(nn.Module, ABC):
    """A residual subblock: ``x + mix(norm(x))``, or ``x + norm(mix(x))`` in some families."""

    def __init__(self, config: ParentConfig) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.norm_after = config.family.norm_after
        self.residual_scale = config.scales.residual

    def inputs(self, x_BLD: torch.Tensor) -> torch.Tensor:
        """What the subblock's matrices read of hidden states, which may be more precise."""
        weight = self.norm.weight
        if self.norm_after:
            return x_BLD.to(weight.dtype)
        normed = F.rms_norm(x_BLD, weight.shape, weight.to(x_BLD.dtype), self.norm.eps)
        return normed.to(weight.dtype)

    def forward(
        self, x_BLD: torch.Tensor, rotary: RotarySlice, cache: LayerCache | None
    ) -> torch.Tensor:
        """Apply the subblock with its residual connection."""
        mixed_BLD = self.mix(self.inputs(x_BLD), rotary, cache)
        if self.norm_after:
            mixed_BLD = self.norm(mixed_BLD)
        return x_BLD + scaled(mixed_BLD, self.residual_scale)

    @abstractmethod
    def mix(
        self, x_BLD: torch.Tensor, rotary: RotarySlice, cache: LayerCache | None
    ) -> torch.Tensor:
        """What the subblock's matrices make of their input, both (B, L, D).

        Args:
            x_BLD: see `inputs`, of the new tokens.
            rotary: cosines and sines of the new positions.
            cache: keys and values of earlier tokens, extended in place; None for a full pass.
        """


def scaled(x: torch.Tensor, factor: float) -> torch.Tensor:
    """Times a factor, most often 1."""
    return x if factor == 1 else x * factor
