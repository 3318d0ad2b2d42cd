"""Rotary position embedding, with the frequencies that transformers computes from the config."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import AutoConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

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

    The angles of the supported rope types (default, linear, llama3, yarn) are transformers' own.

    Raises:
        InputError: transformers does not take the config.
    """

    def __init__(self, config: ParentConfig) -> None:
        super().__init__()
        try:
            hf_config: Any = AutoConfig.for_model(**dict(config.raw))
        except (AttributeError, KeyError, TypeError, ValueError, StrictDataclassError) as error:
            raise InputError(
                f"{config.name}: transformers cannot read the config: {error}",
                remedy="correct the config.json, its rope settings above all",
            ) from error
        with torch.device("cpu"):
            self._embedding = LlamaRotaryEmbedding(hf_config)
        self._head_dim = config.head_dim
        self._theta = float(hf_config.rope_parameters["rope_theta"])
        self._table: RotarySlice | None = None

    @property
    def frequencies(self) -> RopeFrequencies:
        """What the angles of a position are made of."""
        own = self._embedding.inv_freq.double()
        exponents = torch.arange(0, self._head_dim, 2, dtype=torch.float64) / self._head_dim
        plain = self._theta**-exponents
        return RopeFrequencies(self._theta, plain / own, float(self._embedding.attention_scaling))

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
        positions = torch.arange(length)[None]
        cos, sin = self._embedding(torch.empty(0, dtype=torch.float32), positions)
        # rotate() adds x with its halves swapped: the minus sign of the first half goes in here.
        sign = torch.ones(self._head_dim).index_fill_(0, torch.arange(self._head_dim // 2), -1)
        return RotarySlice(cos[0].to(like), (sin[0] * sign).to(like))


def rotate(x_BHLE: torch.Tensor, rotary: RotarySlice) -> torch.Tensor:
    """Rotate query or key heads by their positions."""
    swapped = x_BHLE.roll(x_BHLE.shape[-1] // 2, dims=-1)
    return x_BHLE * rotary.cos_LE + swapped * rotary.sin_LE
