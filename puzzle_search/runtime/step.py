"""Where the new tokens of one engine step stand, and how they attend.

Shape suffixes: N rows (one a new token), B sequences, L new tokens of each, S attended tokens.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from puzzle_search.model.rope import RotarySlice
from puzzle_search.runtime.attention import DecodeAttention, prefill_attention
from puzzle_search.runtime.cache import LayerSlots

History = tuple[torch.Tensor, torch.Tensor]
"""Keys and values (B, S, K, E) of earlier tokens."""


class Places(NamedTuple):
    """Where new tokens are kept: cache slot and position of each row, and which rows if not all."""

    slots_N: torch.Tensor
    positions_N: torch.Tensor
    kept_N: torch.Tensor | None


@dataclass(frozen=True, kw_only=True)
class Step(ABC):
    """New tokens of some slots.

    Attributes:
        slots_N: cache slot of each row.
        positions_N: position of each row within its sequence.
        rotary: cosines and signed sines of each row, (N, 1, E).
    """

    slots_N: torch.Tensor
    positions_N: torch.Tensor
    rotary: RotarySlice

    @abstractmethod
    def places(self, cache: LayerSlots) -> Places:
        """Where a layer keeps the new tokens."""

    def history(self, cache: LayerSlots) -> History | None:
        """What is to be read of a layer before it keeps the new tokens, which may overwrite it."""
        return None

    @abstractmethod
    def attend(
        self,
        q_NHE: torch.Tensor,
        k_NKE: torch.Tensor,
        v_NKE: torch.Tensor,
        cache: LayerSlots,
        history: History | None,
    ) -> torch.Tensor:
        """What each query head attends to, (N, H, E).

        Args:
            q_NHE: rotated queries.
            k_NKE: rotated keys of the new tokens, as they were before the cache rounded them.
            v_NKE: values of the new tokens, likewise.
            cache: keys and values of all tokens that are kept, the new ones among them.
            history: of the layer, read before.
        """


class Ring(NamedTuple):
    """Where the new token of each slot lies in a ring, and how many tokens are in it, int32."""

    positions_B: torch.Tensor
    lengths_B: torch.Tensor

    @classmethod
    def of(cls, positions_B: torch.Tensor, window: int) -> Ring:
        """Of new tokens at these positions."""
        return cls(positions_B % window, (positions_B + 1).clamp(max=window).int())


@dataclass(frozen=True, kw_only=True)
class DecodeStep(Step):
    """One new token for every slot.

    Attributes:
        lengths_B: tokens of each slot, int32, on the device.
        attention: back end by number of KV heads and by window of the slots.
        rings: by window of the slots.
    """

    lengths_B: torch.Tensor
    attention: Mapping[tuple[int, int | None], DecodeAttention]
    rings: Mapping[int, Ring]

    def places(self, cache: LayerSlots) -> Places:
        """See `Step`."""
        if cache.window is None:
            return Places(self.slots_N, self.positions_N, None)
        return Places(self.slots_N, self.rings[cache.window].positions_B, None)

    def attend(
        self,
        q_NHE: torch.Tensor,
        k_NKE: torch.Tensor,
        v_NKE: torch.Tensor,
        cache: LayerSlots,
        history: History | None,
    ) -> torch.Tensor:
        """See `Step`; the order of tokens in a ring does not matter, their angles are in them."""
        attention = self.attention[cache.keys_BSKE.shape[2], cache.window]
        lengths_B = self.lengths_B
        if cache.window is not None:
            lengths_B = self.rings[cache.window].lengths_B
        return attention(q_NHE, cache.keys_BSKE, cache.values_BSKE, lengths_B)


@dataclass(frozen=True, kw_only=True)
class PrefillStep(Step):
    """A chunk of prompts of equal length.

    Attributes:
        slots_B: cache slot of each sequence.
        start: tokens of each prompt that came before.
    """

    slots_B: torch.Tensor
    start: int

    def places(self, cache: LayerSlots) -> Places:
        """See `Step`; of a chunk longer than a window its end is kept."""
        if cache.window is None:
            return Places(self.slots_N, self.positions_N, None)
        rows_BL = torch.arange(len(self.slots_N), device=self.slots_N.device)
        kept_N = rows_BL.unflatten(0, (len(self.slots_B), -1))[:, -cache.window :].flatten()
        return Places(self.slots_N[kept_N], self.positions_N[kept_N] % cache.window, kept_N)

    def history(self, cache: LayerSlots) -> History | None:
        """See `Step`: all but the first of a window, in order."""
        if cache.window is None or not self.start:
            return None
        first = max(0, self.start - cache.window + 1)
        places_S = torch.arange(first, self.start, device=self.slots_B.device) % cache.window
        keys, values = (
            _indexed(cached_BSKE, (self.slots_B[:, None], places_S))
            for cached_BSKE in (cache.keys_BSKE, cache.values_BSKE)
        )
        return keys, values

    def attend(
        self,
        q_NHE: torch.Tensor,
        k_NKE: torch.Tensor,
        v_NKE: torch.Tensor,
        cache: LayerSlots,
        history: History | None,
    ) -> torch.Tensor:
        """See `Step`."""
        sequences = self.slots_B.shape[0]
        q_BLHE = q_NHE.unflatten(0, (sequences, -1))
        k_BSKE, v_BSKE = k_NKE.unflatten(0, (sequences, -1)), v_NKE.unflatten(0, (sequences, -1))
        if history is not None:
            k_BSKE, v_BSKE = (
                torch.cat([past_BSKE.to(q_NHE.dtype), new_BSKE], dim=1)
                for past_BSKE, new_BSKE in zip(history, (k_BSKE, v_BSKE), strict=True)
            )
        elif self.start:
            so_far = (self.slots_B, slice(self.start + q_BLHE.shape[1]))
            k_BSKE, v_BSKE = (
                _indexed(cached_BSKE, so_far).to(q_NHE.dtype)
                for cached_BSKE in (cache.keys_BSKE, cache.values_BSKE)
            )
        return prefill_attention(q_BLHE, k_BSKE, v_BSKE, cache.window).flatten(0, 1)


def _indexed(cached_BSKE: torch.Tensor, index: tuple[Any, ...]) -> torch.Tensor:
    """A part of a cache; FP8 as bytes, since CUDA does not index it everywhere."""
    numbers_BSKE = cached_BSKE
    if cached_BSKE.dtype == torch.float8_e4m3fn:
        numbers_BSKE = cached_BSKE.view(torch.uint8)
    return numbers_BSKE[index].view(cached_BSKE.dtype)
