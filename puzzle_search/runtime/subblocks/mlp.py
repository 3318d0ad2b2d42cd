"""SwiGLU feed-forward network with gate and up in one product."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from puzzle_search.arch import Mlp, ParentConfig, Variant
from puzzle_search.runtime.cache import LayerSlots
from puzzle_search.runtime.fuse import silu_multiply
from puzzle_search.runtime.linear import ServingLinear
from puzzle_search.runtime.precision import Precision
from puzzle_search.runtime.step import Step
from puzzle_search.runtime.subblocks.base import ServingSubblock


class ServingMlp(ServingSubblock):
    """``down(silu(gate(x)) * up(x))``."""

    def __init__(
        self, variant: Variant, config: ParentConfig, precision: Precision, *, tp: int
    ) -> None:
        assert isinstance(variant, Mlp)
        super().__init__(config, precision)
        width = math.ceil(variant.intermediate_size / tp)
        self.entry = ServingLinear(2 * width, config.hidden_size, precision, bias=config.mlp_bias)
        self.down = ServingLinear(config.hidden_size, width, precision, bias=config.mlp_bias)

    def mix(self, normed_ND: torch.Tensor, step: Step, cache: LayerSlots | None) -> torch.Tensor:
        """Apply the network to each row."""
        channels = silu_multiply(self.entry(normed_ND), self.down.fused_scale)
        out: torch.Tensor = self.down(channels)
        return out

    def load_matrices(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """See `ServingSubblock`."""
        parts = ("gate_proj", "up_proj")
        bias = None
        if self.entry.bias is not None:
            bias = torch.cat([tensors[f"{part}.bias"] for part in parts])
        self.entry.load(torch.cat([tensors[f"{part}.weight"] for part in parts]), bias)
        self.down.load(tensors["down_proj.weight"], tensors.get("down_proj.bias"))
