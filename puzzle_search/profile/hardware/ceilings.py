"""Rates of a device that anybody's kernels can be held against."""

from __future__ import annotations

from typing import Any

import torch

from puzzle_search.profile.sampling.timing import device_stopwatch
from puzzle_search.runtime import Precision, precision_on
from puzzle_search.runtime.linear import ServingLinear

_COPY_BYTES = {"cuda": 1 << 31, "cpu": 1 << 27}
# On a CPU a product short enough to end, some of the times, before another process takes its turn.
_MATRIX_SIZE = {"cuda": 8192, "cpu": 512}
_CPU_FP8_SIZE = 256  # torch's reference code
_ROUNDS = {"cuda": 10, "cpu": 40}


@torch.inference_mode()
def measure_ceilings(precision: Precision, device: torch.device) -> dict[str, Any]:
    """Copy bandwidth, and matmul rates of the precision and its activations; the best of rounds.

    Returns:
        ``copy_bytes_per_second``, bytes read and written, and ``matmul_flops_per_second`` by dtype.
    """
    source = torch.ones(_COPY_BYTES[device.type], dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copy_seconds = _least_seconds(lambda: target.copy_(source), device)
    activation = str(precision.activation).removeprefix("torch.")
    others = [precision_on("bf16", device)] if activation == "bfloat16" else []
    rates = {p.name: _matmul_rate(p, device) for p in (precision, *others)}
    return {
        "copy_bytes_per_second": round(2 * source.nbytes / copy_seconds),
        "matmul_flops_per_second": rates,
    }


def best(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """The higher of each rate of two measurements: on a shared machine one may have been disturbed.

    Args:
        first: as `measure_ceilings` gives it.
        second: of the same device and precision.
    """
    copies, rates = (
        (first[key], second[key]) for key in ("copy_bytes_per_second", "matmul_flops_per_second")
    )
    return {
        "copy_bytes_per_second": max(copies),
        "matmul_flops_per_second": {name: max(rates[0][name], rates[1][name]) for name in rates[0]},
    }


def _matmul_rate(precision: Precision, device: torch.device) -> int:
    on_cpu = device.type == "cpu"
    size = _CPU_FP8_SIZE if on_cpu and precision.is_fp8 else _MATRIX_SIZE[device.type]
    with device:
        matrix = ServingLinear(size, size, precision)
        matrix.randomise()
        rows = torch.randn(size, size).to(precision.matrix)
    return round(2 * size**3 / _least_seconds(lambda: matrix(rows), device))


def _least_seconds(work: Any, device: torch.device) -> float:
    work()
    stopwatch = device_stopwatch(device)
    return min(stopwatch(work) for _ in range(_ROUNDS[device.type]))
