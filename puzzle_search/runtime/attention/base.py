"""What a decode attention is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch


class DecodeAttention(Protocol):
    """Attention of one new token of each sequence to the keys and values in its slot.

    One instance serves all layers with the same heads: what ``prepare`` makes is theirs together.

    Attributes:
        is_capturable: whether a captured call, replayed, attends to the lengths of then.
    """

    is_capturable: bool

    def prepare(self, lengths: Sequence[int]) -> None:
        """Host work before a step, before its capture, and before every replay of a captured one.

        Args:
            lengths: of all slots in tokens, the new one included; at least 1.
        """

    def __call__(
        self,
        q_BHE: torch.Tensor,
        keys_BSKE: torch.Tensor,
        values_BSKE: torch.Tensor,
        lengths_B: torch.Tensor,
    ) -> torch.Tensor:
        """Attend to the first ``lengths_B`` positions of each slot.

        Args:
            q_BHE: queries; heads of one group lie together, H = K * group size.
            keys_BSKE: the cache, with S the most tokens that a slot holds; dense in E.
            values_BSKE: as keys.
            lengths_B: int32 on the device, as ``prepare`` was told them.

        Returns:
            What the heads attended to, (B, H, E), in the dtype of ``q_BHE``.
        """
