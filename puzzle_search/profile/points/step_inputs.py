"""What every measured subblock needs: rows, token ids, angles, and memory for keys and values.

All of it is shared: one thing runs at a time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from puzzle_search.arch import ArchitectureSpec, ParentConfig
from puzzle_search.cost.memory import weight_bytes
from puzzle_search.model import Rotary
from puzzle_search.model.rope import RotarySlice
from puzzle_search.profile.hardware.device import Device
from puzzle_search.profile.points.point import Point
from puzzle_search.runtime import Precision, keep_freed_memory
from puzzle_search.runtime.attention import make_decode_attention
from puzzle_search.runtime.cache import LayerSlots, as_slots, ring_of
from puzzle_search.runtime.step import DecodeStep, PrefillStep, Ring, Step

_CACHE_MULTIPLE = 3  # by which weights exceed a cache that shall hold none of them
_RANDOM_BLOCK = 1 << 22  # numbers, repeated over the memory of keys and values


@dataclass(frozen=True, kw_only=True)
class Heads:
    """Query and KV heads on one device, and the window of their attention, if any."""

    query: int
    kv: int
    window: int | None

    def kept_tokens(self, context: int) -> int:
        """Tokens of a sequence whose keys and values are kept."""
        return min(context, self.window or context)


class _SharedSlots(LayerSlots):
    """Keys and values in memory that lies there already."""

    def __init__(
        self, keys_BSKE: torch.Tensor, values_BSKE: torch.Tensor, window: int | None
    ) -> None:
        self.keys_BSKE = keys_BSKE
        self.values_BSKE = values_BSKE
        self.window = window


class StepInputs:
    """Inputs for anything of one parent in one precision on one device.

    Args:
        config: the parent.
        device: to measure on.
        precision: number types.
    """

    def __init__(self, config: ParentConfig, device: Device, precision: Precision) -> None:
        self.config, self.device, self.precision = config, device, precision
        keep_freed_memory(device.torch_device)
        self._rotary = Rotary(config)
        self._model_bytes = sum(
            weight_bytes(variant, config, precision.dtype, 1)
            for block in ArchitectureSpec.identity(config).blocks
            for variant in (block.attention_variant, block.ffn_variant)
        )
        self._cold: torch.Tensor | None = None
        # Two tensors each: compiled kernels do not count on the alignment of a part of another.
        self._rows = self._random_rows(0)
        self._kv = self._random_kv(0)

    @property
    def cooling_bytes(self) -> int:
        """Weights that pass through the caches before a model comes to the same ones again.

        Those of the parent's blocks; of a large parent so many that a cache holds none of them.
        """
        return min(self._model_bytes, _CACHE_MULTIPLE * self.device.cache_bytes)

    def cool(self) -> None:
        """Have as many bytes pass through the caches, and wait for it."""
        if self._cold is None:
            device = self.device.torch_device
            self._cold = torch.zeros(self.cooling_bytes, dtype=torch.uint8, device=device)
        self._cold.add_(1)
        self.device.clock()

    def rows(self, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Residual stream and what is to be added to it, (count, D) each."""
        if len(self._rows[0]) < count:
            self._rows = self._random_rows(count)
        residual_ND, delta_ND = self._rows
        return residual_ND[:count], delta_ND[:count]

    def step(self, point: Point, heads: Heads | None) -> Step:
        """The step of a point for attention with these heads; None where nothing attends."""
        device = self.device.torch_device
        slots_B = torch.arange(point.batch, device=device)
        start = point.context - point.tokens
        positions_N = torch.arange(start, point.context, device=device).repeat(point.batch)
        slots_N = slots_B.repeat_interleave(point.tokens)
        rotary = self._angles(positions_N)
        if point.phase == "prefill":
            return PrefillStep(
                slots_N=slots_N,
                positions_N=positions_N,
                rotary=rotary,
                slots_B=slots_B,
                start=start,
            )
        attention, rings = {}, {}
        if heads is not None:
            kept, window = heads.kept_tokens(point.context), ring_of(heads.window, point.context)
            back_end = make_decode_attention(
                None,
                device,
                slots=point.batch,
                max_length=kept,
                num_heads=heads.query,
                kv_heads=heads.kv,
                head_dim=self.config.head_dim,
                dtype=self.precision.activation,
                kv_dtype=self.precision.kv,
            )
            back_end.prepare([kept] * point.batch)
            attention[heads.kv, window] = back_end
            if window is not None:
                rings[window] = Ring.of(positions_N, window)
        return DecodeStep(
            slots_N=slots_N,
            positions_N=positions_N,
            rotary=rotary,
            lengths_B=torch.full((point.batch,), point.context, dtype=torch.int32, device=device),
            attention=attention,
            rings=rings,
        )

    def slots(self, point: Point, heads: Heads, *, copies: int) -> list[LayerSlots]:
        """Random keys and values of a point, so many times."""
        kept, window = heads.kept_tokens(point.context), ring_of(heads.window, point.context)
        shape = (point.batch, kept, heads.kv, self.config.head_dim)
        size = math.prod(shape)
        count = copies * size
        if self._kv[0].numel() < count:
            self.release()  # before larger ones are made
            self._kv = self._random_kv(count)
        pairs = zip(*(kv[:count].split(size) for kv in self._kv), strict=True)
        return [_SharedSlots(as_slots(k, shape), as_slots(v, shape), window) for k, v in pairs]

    def release(self) -> None:
        """Give the memory of keys and values back."""
        self._kv = self._random_kv(0)

    def _random_rows(self, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        shape = (count, self.config.hidden_size)
        device, dtype = self.device.torch_device, self.precision.activation
        residual_ND, delta_ND = (torch.randn(shape, dtype=dtype, device=device) for _ in range(2))
        return residual_ND, delta_ND

    def _random_kv(self, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        device, dtype = self.device.torch_device, self.precision.kv
        keys, values = (torch.empty(count, dtype=dtype, device=device) for _ in range(2))
        block = torch.randn(min(count, _RANDOM_BLOCK), device=device).to(dtype)
        for kv in (keys, values):
            for part in kv.split(max(1, len(block))):
                part.copy_(block[: len(part)])
        return keys, values

    def _angles(self, positions_N: torch.Tensor) -> RotarySlice:
        last = int(positions_N.max())
        residual_1D, _ = self.rows(1)
        cos_SE, sin_SE = self._rotary.slice(0, last + 1, residual_1D)
        return RotarySlice(cos_SE[positions_N, None], sin_SE[positions_N, None])
