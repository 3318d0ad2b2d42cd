"""How fast a device multiplies a few rows and many, in each precision: which one is fast here?"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from puzzle_search.errors import InputError
from puzzle_search.profile.sampling.timing import device_stopwatch
from puzzle_search.runtime import precision_on
from puzzle_search.runtime.linear import ServingLinear

# Larger than caches, so that few rows are bound by memory, as decode is.
_MATRIX_SIZE = {"cuda": 8192, "cpu": 4096}
_SECONDS = 0.2  # of each measurement, after its warm-up


@dataclass(frozen=True, kw_only=True)
class ProductSpeed:
    """The least time of one product: ``rows`` vectors with a square matrix of ``size``."""

    dtype: str
    rows: int
    size: int
    us: float

    @property
    def flops_per_second(self) -> float:
        """Rate of the product."""
        return 2 * self.rows * self.size**2 / (self.us * 1e-6)


@torch.inference_mode()
def measure_products(
    device: torch.device, dtypes: Sequence[str], rows: Sequence[int] = (1, 64)
) -> list[ProductSpeed]:
    """Time products as the runtime does them; precisions that the device lacks are left out."""
    found, size, stopwatch = [], _MATRIX_SIZE[device.type], device_stopwatch(device)
    for dtype in dtypes:
        try:
            precision = precision_on(dtype, device)
        except InputError:  # the device is too old for it
            continue
        with device:
            matrix = ServingLinear(size, size, precision)
            matrix.randomise()
        for count in rows:
            with device:
                given = torch.randn(count, size).to(precision.matrix)
            matrix(given)
            until, seconds = time.perf_counter() + _SECONDS, float("inf")
            while time.perf_counter() < until or seconds == float("inf"):
                seconds = min(seconds, stopwatch(lambda: matrix(given)))  # noqa: B023
            found.append(ProductSpeed(dtype=dtype, rows=count, size=size, us=seconds * 1e6))
    return found
