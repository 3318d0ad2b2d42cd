"""One matrix in place of an attention or FFN subblock (Puzzle, section 2)."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from puzzle_search.arch import ParentConfig, Variant
from puzzle_search.runtime.cache import LayerSlots
from puzzle_search.runtime.linear import ServingLinear
from puzzle_search.runtime.precision import Precision
from puzzle_search.runtime.step import Step
from puzzle_search.runtime.subblocks.base import ServingSubblock


class ServingMatrix(ServingSubblock):
    """A hidden-to-hidden matrix; a device's share reads a part of the hidden state."""

    def __init__(
        self, variant: Variant, config: ParentConfig, precision: Precision, *, tp: int
    ) -> None:
        super().__init__(config, precision)
        self._inputs = math.ceil(config.hidden_size / tp)
        self.entry = ServingLinear(config.hidden_size, self._inputs, precision)

    def mix(self, normed_ND: torch.Tensor, step: Step, cache: LayerSlots | None) -> torch.Tensor:
        """Apply the matrix to each row."""
        out: torch.Tensor = self.entry(normed_ND[:, : self._inputs])
        return out

    def load_matrices(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """See `ServingSubblock`."""
        self.entry.load(tensors["linear.weight"])
