"""The number types that a serving precision stands for on a device."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from puzzle_search.cost import Dtype, parse_dtype
from puzzle_search.errors import InputError

# Compute capability from which NVIDIA's GPUs multiply in these types.
_LEAST_CAPABILITY = {"bf16": (8, 0), "fp8": (8, 9)}


@dataclass(frozen=True, kw_only=True)
class Precision:
    """Number types of a serving precision.

    Attributes:
        name: ``fp8``, ``bf16`` or ``fp32``.
        matrix: of the matrices inside blocks.
        activation: of activations, norms, biases, embedding and output head.
        kv: of the KV cache.
    """

    name: str
    matrix: torch.dtype
    activation: torch.dtype
    kv: torch.dtype

    @property
    def is_fp8(self) -> bool:
        """Whether matrices are scaled 8-bit numbers."""
        return self.matrix == torch.float8_e4m3fn

    @property
    def dtype(self) -> Dtype:
        """Its bytes per number, as costs are computed with."""
        return parse_dtype(self.name)


_PRECISIONS = {
    precision.name: precision
    for precision in (
        Precision(
            name="fp8",
            matrix=torch.float8_e4m3fn,
            activation=torch.bfloat16,
            kv=torch.float8_e4m3fn,
        ),
        Precision(name="bf16", matrix=torch.bfloat16, activation=torch.bfloat16, kv=torch.bfloat16),
        Precision(name="fp32", matrix=torch.float32, activation=torch.float32, kv=torch.float32),
    )
}


def precision_on(name: str, device: torch.device) -> Precision:
    """The precision of that name, if the device computes in it.

    A CPU computes in all of them, in FP8 by torch's reference code.

    Raises:
        InputError: the name is not known, or the GPU is too old for it.
    """
    if name not in _PRECISIONS:
        raise InputError(
            f"dtype {name!r} is not known", remedy=f"use one of {', '.join(_PRECISIONS)}"
        )
    least = _LEAST_CAPABILITY.get(name)
    if device.type == "cuda" and least is not None:
        capability = torch.cuda.get_device_capability(device)
        if capability < least:
            raise InputError(
                f"{torch.cuda.get_device_name(device)} does not compute in {name}: its compute "
                f"capability is {capability[0]}.{capability[1]}, needed is {least[0]}.{least[1]}",
                remedy="use --dtype bf16" if name == "fp8" else "use --dtype fp32",
            )
    return _PRECISIONS[name]
