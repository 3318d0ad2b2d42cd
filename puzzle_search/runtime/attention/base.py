"""What every decode attention does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch


class DecodeAttention(Protocol):
    """One new token of every slot attends to the tokens in its slot."""

    def prepare(self, lengths: Sequence[int]) -> None:
        """Host work before a step, captured or not: lengths of all slots, new token included."""
        ...

    def __call__(
        self,
        q_BHE: torch.Tensor,
        keys_BSKE: torch.Tensor,
        values_BSKE: torch.Tensor,
        lengths_B: torch.Tensor,
    ) -> torch.Tensor:
        """What each query head attends to, (B, H, E)."""
        ...
