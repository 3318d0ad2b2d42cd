"""Number types by the names that people give them."""

from __future__ import annotations

import time

import torch

from puzzle_search.errors import InputError

_TORCH_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
# Of the product whose time is taken, a millisecond of one core in fp32; and bf16's part of fp32's
# time up to which it is taken: its units leave 0.2 to 0.7, a processor without them 2 and more.
_ROWS, _SIZE, _ROUNDS = 128, 512, 5
_CLEARLY_FASTER = 0.8


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


def fastest_dtype(device: str) -> tuple[str, str]:
    """``bf16`` where it is clearly faster than ``fp32`` on ``cpu`` or ``cuda``, and why.

    On a CPU products are timed, for some milliseconds.
    """
    if device == "cuda":
        faster = torch.cuda.is_bf16_supported(including_emulation=False)
        return ("bf16", "the GPU has units for it") if faster else ("fp32", "the GPU has no bf16")
    part = _least_seconds(torch.bfloat16) / _least_seconds(torch.float32)
    name = "bf16" if part < _CLEARLY_FASTER else "fp32"
    return name, f"products in bf16 take {part:.2f} of fp32's time on this processor"


@torch.inference_mode()
def _least_seconds(dtype: torch.dtype) -> float:
    rows, matrix = (torch.ones(size, _SIZE, dtype=dtype) for size in (_ROWS, _SIZE))
    found = []
    for _ in range(_ROUNDS):
        started = time.perf_counter()
        rows @ matrix.T
        found.append(time.perf_counter() - started)
    return min(found)
