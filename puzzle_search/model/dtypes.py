"""Number types by the names that people give them."""

from __future__ import annotations

import torch

from puzzle_search.errors import InputError

_TORCH_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def torch_dtype(name: str) -> torch.dtype:
    """The torch dtype of ``fp32`` or ``bf16``, the precisions that this package computes in.

    Raises:
        InputError: it is neither.
    """
    if name not in _TORCH_DTYPES:
        raise InputError(
            f"dtype {name!r} cannot be computed in here",
            remedy=f"use one of {', '.join(_TORCH_DTYPES)}",
        )
    return _TORCH_DTYPES[name]
