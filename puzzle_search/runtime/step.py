"""Where the new tokens of one engine step stand, and how they attend.

Shape suffixes: N rows (one a new token), B sequences, L new tokens of each, S attended tokens.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from puzzle_search.model.rope import RotarySlice
from puzzle_search.runtime.attention import DecodeAttention, prefill_attention
from puzzle_search.runtime.cache import LayerSlots


@dataclass(frozen=True, kw_only=True)
class Step(ABC):
    """New tokens of some slots.

    Attributes:
        slots_N: cache slot of each row.
        positions_N: position of each row within its slot.
        rotary: cosines and signed sines of each row, (N, 1, E).
    """

    slots_N: torch.Tensor
    positions_N: torch.Tensor
    rotary: RotarySlice

    @abstractmethod
    def attend(
        self, q_NHE: torch.Tensor, k_NKE: torch.Tensor, v_NKE: torch.Tensor, cache: LayerSlots
    ) -> torch.Tensor:
        """What each query head attends to, (N, H, E).

        Args:
            q_NHE: rotated queries.
            k_NKE: rotated keys of the new tokens, as they were before the cache rounded them.
            v_NKE: values of the new tokens, likewise.
            cache: keys and values of all tokens so far, the new ones among them.
        """


@dataclass(frozen=True, kw_only=True)
class DecodeStep(Step):
    """One new token for every slot.

    Attributes:
        lengths_B: tokens that each slot attends to, int32, on the device.
        attention: back end by number of KV heads.
    """

    lengths_B: torch.Tensor
    attention: Mapping[int, DecodeAttention]

    def attend(
        self, q_NHE: torch.Tensor, k_NKE: torch.Tensor, v_NKE: torch.Tensor, cache: LayerSlots
    ) -> torch.Tensor:
        """See `Step`."""
        attention = self.attention[cache.keys_BSKE.shape[2]]
        return attention(q_NHE, cache.keys_BSKE, cache.values_BSKE, self.lengths_B)


@dataclass(frozen=True, kw_only=True)
class PrefillStep(Step):
    """A chunk of prompts of equal length.

    Attributes:
        slots_B: cache slot of each sequence.
        start: tokens of each prompt that are in the cache already.
    """

    slots_B: torch.Tensor
    start: int

    def attend(
        self, q_NHE: torch.Tensor, k_NKE: torch.Tensor, v_NKE: torch.Tensor, cache: LayerSlots
    ) -> torch.Tensor:
        """See `Step`."""
        sequences = self.slots_B.shape[0]
        q_BLHE = q_NHE.unflatten(0, (sequences, -1))
        k_BSKE, v_BSKE = k_NKE.unflatten(0, (sequences, -1)), v_NKE.unflatten(0, (sequences, -1))
        if self.start:
            end = self.start + q_BLHE.shape[1]
            k_BSKE, v_BSKE = (
                _of_slots(cached_BSKE, self.slots_B, end).to(q_NHE.dtype)
                for cached_BSKE in (cache.keys_BSKE, cache.values_BSKE)
            )
        return prefill_attention(q_BLHE, k_BSKE, v_BSKE).flatten(0, 1)


def _of_slots(cached_BSKE: torch.Tensor, slots_B: torch.Tensor, end: int) -> torch.Tensor:
    """The first positions of some slots; FP8 as bytes, since CUDA does not index it everywhere."""
    numbers_BSKE = cached_BSKE
    if cached_BSKE.dtype == torch.float8_e4m3fn:
        numbers_BSKE = cached_BSKE.view(torch.uint8)
    return numbers_BSKE[slots_B, :end].view(cached_BSKE.dtype)
