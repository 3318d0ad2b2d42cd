"""Static KV cache, sized by layer: a block without attention has none."""

from __future__ import annotations

import torch

from puzzle_search.arch import Gqa, ParentConfig, Variant


class LayerCache:
    """Keys and values of one attention subblock, (B, K, max length, E) each.

    All tokens stay, those that a window has passed among them, so that a cache can be rewound.
    """

    def __init__(
        self,
        variant: Gqa,
        config: ParentConfig,
        *,
        batch: int,
        max_length: int,
        dtype: torch.dtype,
        device: torch.device | str,
    ) -> None:
        shape = (batch, variant.kv_heads, max_length, config.head_dim)
        self._keys = torch.zeros(shape, dtype=dtype, device=device)
        self._values = torch.zeros(shape, dtype=dtype, device=device)
        self.length = 0

    @property
    def num_bytes(self) -> int:
        """Bytes of keys and values."""
        return self._keys.nbytes + self._values.nbytes

    def extend(
        self, k_BKLE: torch.Tensor, v_BKLE: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Store new keys and values; return all so far, (B, K, S, E) views."""
        end = self.length + k_BKLE.shape[2]
        self._keys[:, :, self.length : end] = k_BKLE
        self._values[:, :, self.length : end] = v_BKLE
        self.length = end
        return self._keys[:, :, :end], self._values[:, :, :end]


class KvCache:
    """The layer caches of a decoder, by block; None where a block keeps nothing."""

    def __init__(
        self,
        attention: list[Variant],
        config: ParentConfig,
        *,
        batch: int,
        max_length: int,
        dtype: torch.dtype,
        device: torch.device | str,
    ) -> None:
        self.max_length = max_length
        self.length = 0
        self.layers: list[LayerCache | None] = [
            LayerCache(
                variant, config, batch=batch, max_length=max_length, dtype=dtype, device=device
            )
            if isinstance(variant, Gqa)
            else None
            for variant in attention
        ]

    @property
    def num_bytes(self) -> int:
        """Bytes of all layers."""
        return sum(layer.num_bytes for layer in self.layers if layer is not None)

    def rewind(self, length: int) -> None:
        """Forget all tokens after the first ``length``."""
        self.length = length
        for layer in self.layers:
            if layer is not None:
                layer.length = length
