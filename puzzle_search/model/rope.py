"""Rotary position embedding, with the frequencies that transformers computes from the config."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import AutoConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from puzzle_search.arch import ParentConfig
from puzzle_search.errors import InputError


class RotarySlice(NamedTuple):
    """Cosines and signed sines of consecutive positions, both (L, E)."""

    cos_LE: torch.Tensor
    sin_LE: torch.Tensor

    @property
    def still(self) -> RotarySlice:
        """The same positions of a layer that rotates nothing."""
        return RotarySlice(torch.ones_like(self.cos_LE), torch.zeros_like(self.sin_LE))

    def of_layer(self, layer: int, config: ParentConfig) -> RotarySlice:
        """As that layer of a parent rotates."""
        return self.still if layer in config.unrotated else self


class RopeFrequencies(NamedTuple):
    """Base, by what each plain frequency is divided (E / 2), and the factor on cos and sin."""

    theta: float
    divisors: torch.Tensor
    attention_scale: float


class Rotary(nn.Module):
    """Table of cosines and sines, grown when longer contexts are asked for.

    The angles of the supported rope types (default, linear, llama3, yarn) are transformers' own;
    plain ones are computed here, since transformers' configs load torch's compiler: a second.

    Raises:
        InputError: transformers does not take the config.
    """

    def __init__(self, config: ParentConfig) -> None:
        super().__init__()
        self._head_dim = config.head_dim
        self._theta, rope_type, hf_config = _rope_of(config)
        with torch.device("cpu"):  # of a model that is laid out on none
            exponents = torch.arange(0, self._head_dim, 2, dtype=torch.float32) / self._head_dim
            self._inverse, self._scale = 1.0 / (self._theta**exponents), 1.0
            if rope_type != "default":
                self._inverse, self._scale = ROPE_INIT_FUNCTIONS[rope_type](hf_config)
        self._table: RotarySlice | None = None

    @property
    def frequencies(self) -> RopeFrequencies:
        """What the angles of a position are made of."""
        own = self._inverse.double()
        exponents = torch.arange(0, self._head_dim, 2, dtype=torch.float64) / self._head_dim
        plain = self._theta**-exponents
        return RopeFrequencies(self._theta, plain / own, float(self._scale))

    def slice(self, start: int, length: int, like: torch.Tensor) -> RotarySlice:
        """Angles of ``length`` positions from ``start``, in the dtype and device of ``like``."""
        end = start + length
        table = self._table
        if (
            table is None
            or table.cos_LE.shape[0] < end
            or table.cos_LE.dtype != like.dtype
            or table.cos_LE.device != like.device
        ):
            # The table outlives the call: made in inference mode, it could never serve training.
            with torch.inference_mode(False):
                table = self._make_table(max(256, 1 << (end - 1).bit_length()), like)
            self._table = table
        return RotarySlice(table.cos_LE[start:end], table.sin_LE[start:end])

    def _make_table(self, length: int, like: torch.Tensor) -> RotarySlice:
        angles_LF = torch.arange(length, dtype=torch.float32)[:, None] * self._inverse
        angles_LE = torch.cat([angles_LF, angles_LF], dim=1)
        cos_LE, sin_LE = angles_LE.cos() * self._scale, angles_LE.sin() * self._scale
        # rotate() adds x with its halves swapped: the minus sign of the first half goes in here.
        sign = torch.ones(self._head_dim).index_fill_(0, torch.arange(self._head_dim // 2), -1)
        return RotarySlice(cos_LE.to(like), (sin_LE * sign).to(like))


def _rope_of(config: ParentConfig) -> tuple[float, str, Any]:
    """Base, rope type, and transformers' config where the type is not the plain one."""
    settings = config.raw.get("rope_parameters") or config.raw.get("rope_scaling") or {}
    theta = settings.get("rope_theta", config.raw.get("rope_theta"))
    plain = settings.get("rope_type", settings.get("type", "default")) == "default"
    if plain and isinstance(theta, int | float):
        return float(theta), "default", None
    try:
        hf_config: Any = AutoConfig.for_model(**dict(config.raw))
    except (AttributeError, KeyError, TypeError, ValueError, StrictDataclassError) as error:
        raise InputError(
            f"{config.name}: transformers cannot read the config: {error}",
            remedy="correct the config.json, its rope settings above all",
        ) from error
    rope = hf_config.rope_parameters
    return float(rope["rope_theta"]), rope["rope_type"], hf_config


def rotate(x_BHLE: torch.Tensor, rotary: RotarySlice) -> torch.Tensor:
    """Rotate query or key heads by their positions."""
    swapped = x_BHLE.roll(x_BHLE.shape[-1] // 2, dims=-1)
    return x_BHLE * rotary.cos_LE + swapped * rotary.sin_LE
