"""KV cache of fixed slots, sized by layer: a block without attention has none.

A layer whose window is shorter than its slots keeps the window alone, as a ring: the token of
position p lies at p modulo the window.
"""

from __future__ import annotations

import math

import torch

from puzzle_search.arch import Gqa, ParentConfig, Variant


class LayerSlots:
    """Keys and values of one attention subblock, (slots, kept tokens, K, E) each.

    Attributes:
        window: tokens that a slot keeps where that is a window; None where it keeps them all.

    In the memory of a CPU the positions of a head lie together, as torch's attention there reads
    them; on a GPU the heads of a position do, as kernels for paged caches have it.
    """

    def __init__(
        self,
        kv_heads: int,
        head_dim: int,
        *,
        slots: int,
        max_length: int,
        window: int | None = None,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.window = ring_of(window, max_length)
        shape = (slots, self.window or max_length, kv_heads, head_dim)
        count = math.prod(shape)
        self.keys_BSKE = as_slots(torch.zeros(count, dtype=dtype, device=device), shape)
        self.values_BSKE = as_slots(torch.zeros(count, dtype=dtype, device=device), shape)

    @property
    def num_bytes(self) -> int:
        """Bytes of keys and values."""
        return self.keys_BSKE.nbytes + self.values_BSKE.nbytes


def ring_of(window: int | None, max_length: int) -> int | None:
    """The window of slots that are longer than it; None where nothing is ever passed."""
    return window if window is not None and window < max_length else None


def as_slots(memory: torch.Tensor, shape: tuple[int, int, int, int]) -> torch.Tensor:
    """Flat memory as (slots, max length, K, E), in the order that suits its device."""
    if memory.device.type != "cpu":
        return memory.view(shape)
    slots, length, heads, size = shape
    return memory.view(slots, heads, length, size).transpose(1, 2)


class SlotCache:
    """The layers of a decoder; each slot holds one sequence."""

    def __init__(
        self,
        attention: list[Variant],
        config: ParentConfig,
        *,
        slots: int,
        max_length: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.layers = [
            LayerSlots(
                variant.kv_heads,
                config.head_dim,
                slots=slots,
                max_length=max_length,
                window=variant.window(config),
                dtype=dtype,
                device=device,
            )
            if isinstance(variant, Gqa)
            else None
            for variant in attention
        ]

    @property
    def num_bytes(self) -> int:
        """Bytes of all layers."""
        return sum(layer.num_bytes for layer in self.layers if layer is not None)

    def randomise(self) -> None:
        """Fill all slots alike with random numbers: zeros may be faster to time than data."""
        for layer in self.layers:
            for tensor in () if layer is None else (layer.keys_BSKE, layer.values_BSKE):
                one = torch.randn(tensor.shape[1:], dtype=torch.float16, device=tensor.device)
                tensor.copy_(one.to(tensor.dtype).expand(tensor.shape))
