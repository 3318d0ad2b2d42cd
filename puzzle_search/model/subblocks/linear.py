"""One matrix in place of an attention or FFN subblock (Puzzle, section 2)."""

from __future__ import annotations

import torch
from torch import nn

from puzzle_search.arch import ParentConfig, Variant
from puzzle_search.model.cache import LayerCache
from puzzle_search.model.rope import RotarySlice
from puzzle_search.model.subblocks.base import SubblockModule


class LinearSubblock(SubblockModule):
    """A hidden-to-hidden matrix applied to each token; attends to nothing, caches nothing."""

    def __init__(self, variant: Variant, config: ParentConfig) -> None:
        super().__init__(config)
        self.linear = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def mix(
        self, x_BLD: torch.Tensor, rotary: RotarySlice, cache: LayerCache | None
    ) -> torch.Tensor:
        """Apply the matrix."""
        out: torch.Tensor = self.linear(x_BLD)
        return out
