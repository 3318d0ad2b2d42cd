"""What every serving subblock does."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import nn

from puzzle_search.arch import ParentConfig
from puzzle_search.model.subblocks.base import scaled
from puzzle_search.runtime.cache import LayerSlots
from puzzle_search.runtime.fuse import add_norm
from puzzle_search.runtime.linear import ServingLinear
from puzzle_search.runtime.precision import Precision
from puzzle_search.runtime.step import Step

NORM = "norm.weight"
"""Local name of the norm's weight, as in `puzzle_search.model`."""


class ServingSubblock(nn.Module, ABC):
    """A residual subblock over rows, one a new token; its norm is before it, or after.

    What a subblock gives is added to the residual stream by the next one's norm, in the same
    kernel. With ``tp`` above 1 it is one device's share of the subblock, without the all-reduce:
    something to measure, not to run a model with.

    Attributes:
        entry: the matrix that reads the subblock's input.
    """

    entry: ServingLinear

    def __init__(self, config: ParentConfig, precision: Precision) -> None:
        super().__init__()
        self._eps = config.rms_norm_eps
        self._norm_after = config.family.norm_after
        self._residual_scale = config.scales.residual
        self.norm_weight = nn.Parameter(
            torch.ones(config.hidden_size, dtype=precision.activation), requires_grad=False
        )

    def forward(
        self,
        residual_ND: torch.Tensor,
        delta_ND: torch.Tensor | None,
        step: Step,
        cache: LayerSlots | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Add ``delta`` to the residual stream; return it and this subblock's own contribution."""
        norm = self.norm_weight, self._eps
        if self._norm_after:
            if delta_ND is not None:
                residual_ND = residual_ND + scaled(delta_ND, self._residual_scale)
            mixed_ND = self.mix(residual_ND, step, cache)
            return residual_ND, add_norm(mixed_ND, None, *norm, None, 1.0)[1]
        residual_ND, normed_ND = add_norm(
            residual_ND, delta_ND, *norm, self.entry.fused_scale, self._residual_scale
        )
        return residual_ND, self.mix(normed_ND, step, cache)

    @abstractmethod
    def mix(self, normed_ND: torch.Tensor, step: Step, cache: LayerSlots | None) -> torch.Tensor:
        """What the matrices make of their input rows, normed unless the norm is after, (N, D)."""

    @abstractmethod
    def load_matrices(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Take all weights but the norm's, by their local names in a checkpoint."""

    def load(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Take weights by their local names, as `puzzle_search.model` names them."""
        self.norm_weight.copy_(tensors[NORM])
        self.load_matrices(tensors)

    def randomise(self) -> None:
        """Take random weights; norms are ones, biases zeros."""
        for part in self.modules():
            if isinstance(part, ServingLinear):
                part.randomise()
