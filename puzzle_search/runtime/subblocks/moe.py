"""Mixture of SwiGLU experts: rows sorted by expert, two grouped products."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import nn

from puzzle_search.arch import Moe, ParentConfig, Variant
from puzzle_search.errors import InputError
from puzzle_search.model.subblocks.moe import grouped, route, summed
from puzzle_search.runtime.cache import LayerSlots
from puzzle_search.runtime.fuse import silu_multiply
from puzzle_search.runtime.linear import RANDOM_STD, ServingLinear
from puzzle_search.runtime.precision import Precision
from puzzle_search.runtime.step import Step
from puzzle_search.runtime.subblocks.base import ServingSubblock


class ServingMoe(ServingSubblock):
    """Experts that are cut along their width over ``tp`` devices, each with the whole router.

    Raises:
        InputError: the precision is FP8.
    """

    def __init__(
        self, variant: Variant, config: ParentConfig, precision: Precision, *, tp: int
    ) -> None:
        assert isinstance(variant, Moe)
        assert config.experts is not None
        if precision.is_fp8:
            raise InputError(
                f"the runtime does not compute experts ({variant}) in fp8", remedy="use bf16"
            )
        super().__init__(config, precision)
        self._top_k = variant.top_k_in(config)
        self._renormalised = config.experts.renormalised
        width = math.ceil(variant.width_in(config) / tp)
        hidden, dtype = config.hidden_size, precision.matrix
        self.entry = ServingLinear(variant.experts, hidden, precision)
        self.gate_up = nn.Parameter(
            torch.empty(variant.experts, 2 * width, hidden, dtype=dtype), requires_grad=False
        )
        self.down = nn.Parameter(
            torch.empty(variant.experts, hidden, width, dtype=dtype), requires_grad=False
        )

    def mix(self, normed_ND: torch.Tensor, step: Step, cache: LayerSlots | None) -> torch.Tensor:
        """Apply its experts to each row."""
        routing = route(self.entry(normed_ND), self._top_k, renormalised=self._renormalised)
        gate_up = grouped(normed_ND[routing.tokens_R], self.gate_up, routing)
        out_RD = grouped(silu_multiply(gate_up, None), self.down, routing)
        return summed(out_RD, routing, len(normed_ND))

    def load_matrices(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """See `ServingSubblock`."""
        self.entry.load(tensors["gate.weight"])
        self.gate_up.copy_(tensors["experts.gate_up_proj"])
        self.down.copy_(tensors["experts.down_proj"])

    def randomise(self) -> None:
        """See `ServingSubblock`."""
        super().randomise()
        for weight in (self.gate_up, self.down):
            weight.normal_(std=RANDOM_STD)
