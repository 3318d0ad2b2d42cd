"""Weights as an engine's own quantiser leaves them, in fp32: what a child of mixed types computes.

A child's folder keeps the weights as they were built; whoever reads a subblock gets them rounded to
the type that its variant names. An export quantises the same numbers in the same way.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from puzzle_search.arch.weight_types import GGUF_BYTES, gguf_type
from puzzle_search.errors import InputError
from puzzle_search.packages import installed

_NUMBERS_AT_ONCE = 1 << 20
_ROUTER = "gate.weight"


def rounded(tensors: Mapping[str, torch.Tensor], weights: str | None) -> dict[str, torch.Tensor]:
    """A subblock's tensors, by local name, with matrices rounded to a type.

    Vectors and routers stay as they are, and all do where no type is named.

    Raises:
        InputError: nothing here rounds to that type.
        MissingDependencyError: the `gguf` package is absent.
    """
    if weights is None:
        return dict(tensors)
    if weights not in GGUF_BYTES:
        raise InputError(
            f"weights are not rounded to {weights} here",
            remedy=f"use one of {', '.join(GGUF_BYTES)}; costs alone know {weights}",
        )
    return {
        name: tensor if tensor.ndim == 1 or name == _ROUTER else _rounded(tensor, weights)
        for name, tensor in tensors.items()
    }


def _rounded(tensor: torch.Tensor, weights: str) -> torch.Tensor:
    with installed():
        from gguf import GGMLQuantizationType
        from gguf.quants import dequantize, quantize
    stored = GGMLQuantizationType[gguf_type(tuple(tensor.shape), weights).upper()]
    rows = tensor.reshape(-1, tensor.shape[-1])
    parts = [
        torch.from_numpy(dequantize(quantize(part.float().cpu().numpy(), stored), stored))
        for part in rows.split(max(1, _NUMBERS_AT_ONCE // rows.shape[1]))
    ]
    return torch.cat(parts).view(tensor.shape)
