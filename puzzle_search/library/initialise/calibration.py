"""What an initialiser may look at."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from puzzle_search.arch import ParentConfig, Subblock
from puzzle_search.model import SubblockModule

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """One parent subblock with its activations on calibration tokens.

    Attributes:
        config: the parent's shape.
        subblock: attention or FFN.
        module: the parent's subblock.
        normed_TD: its normed input, tokens first.
        output_TD: its contribution to the residual stream.
    """

    config: ParentConfig
    subblock: Subblock
    module: SubblockModule
    normed_TD: torch.Tensor
    output_TD: torch.Tensor

    @property
    def tensors(self) -> Tensors:
        """Copies of the parent's tensors by local name: a student is trained in place."""
        return {name: value.detach().clone() for name, value in self.module.state_dict().items()}
