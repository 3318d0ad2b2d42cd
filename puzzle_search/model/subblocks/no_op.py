"""A subblock that is left out."""

from __future__ import annotations

import torch
from torch import nn

from puzzle_search.arch import ParentConfig, Variant
from puzzle_search.model.cache import LayerCache
from puzzle_search.model.rope import RotarySlice
from puzzle_search.model.subblocks.base import SubblockModule


class NoOpSubblock(SubblockModule):
    """The residual stream passes through; no norm, no weights."""

    def __init__(self, variant: Variant, config: ParentConfig) -> None:
        nn.Module.__init__(self)

    def forward(
        self, x_BLD: torch.Tensor, rotary: RotarySlice, cache: LayerCache | None
    ) -> torch.Tensor:
        """Return the input."""
        return x_BLD

    def mix(
        self, x_BLD: torch.Tensor, rotary: RotarySlice, cache: LayerCache | None
    ) -> torch.Tensor:
        """Contribute nothing."""
        return torch.zeros_like(x_BLD)
