"""No measured point may beat the hardware: what does was not measured as it says."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from puzzle_search.arch import ParentConfig, parse_variant
from puzzle_search.cost.measured.profile_rows import HEAD, LatencyRow
from puzzle_search.cost.measured.work import head_work, subblock_floor
from puzzle_search.cost.memory import Dtype
from puzzle_search.cost.modelled.hardware import device_cost_model
from puzzle_search.errors import InputError

# By how much a row may exceed a rate that was measured, not promised: a matrix product that the
# library does better than the one of the ceiling, on a machine whose clock moves.
_MEASURED_TOLERANCE = 1.5


@dataclass(frozen=True, kw_only=True)
class HardwareLimit:
    """Rates that a device cannot exceed.

    Attributes:
        source: where they come from.
        flops_per_second: by dtype; what is not in it is not limited.
        bytes_per_second: of the memory; None where caches may hold what is read.
    """

    source: str
    flops_per_second: Mapping[str, float]
    bytes_per_second: float | None


def hardware_limit(sidecar: Mapping[str, Any]) -> HardwareLimit:
    """The data sheet of a profile's device, or else its measured matmul ceiling.

    The ceiling limits FLOPs alone, with a tolerance of 1.5: caches hold small models.

    Args:
        sidecar: of the profile.
    """
    device = sidecar["device"]
    model = device_cost_model(device["name"], device["memory_bytes"])
    if model is not None:
        return HardwareLimit(
            source=f"the data sheet of the {model.gpu}",
            flops_per_second=model.sheet.flops_per_second,
            bytes_per_second=model.sheet.hbm_bytes_per_second,
        )
    measured = sidecar["ceilings"]["matmul_flops_per_second"]
    return HardwareLimit(
        source=f"{_MEASURED_TOLERANCE} x the profile's measured matmul ceiling",
        flops_per_second={dtype: _MEASURED_TOLERANCE * rate for dtype, rate in measured.items()},
        bytes_per_second=None,
    )


def check_latency(
    rows: Iterable[LatencyRow],
    config: ParentConfig,
    dtype: Dtype,
    sidecar: Mapping[str, Any],
    file: Path,
) -> None:
    """Check that no row beats the hardware.

    Args:
        rows: of the profile, in the order of the file.
        config: the parent.
        dtype: serving precision.
        sidecar: of the profile.
        file: of the rows, for the message.

    Raises:
        InputError: one does; names file and row.
    """
    limit = hardware_limit(sidecar)
    for number, row in enumerate(rows, start=2):
        least_us, bound = least_latency_us(row, config, dtype, limit)
        if row.latency_us < least_us:
            raise InputError(
                f"{file}, row {number}: {row.subblock} {row.variant} in {row.latency_us:g} us is "
                f"faster than its {bound} can be by {limit.source}, {least_us:.4g} us",
                remedy="measure again: the work was not done, or data came from a cache; if the "
                "device or the ceilings in profile.yaml are wrong, correct what wrote them",
            )


def least_latency_us(
    row: LatencyRow, config: ParentConfig, dtype: Dtype, limit: HardwareLimit
) -> tuple[float, str]:
    """The time that the work of a row takes at least, and what bounds it.

    Args:
        row: of a profile.
        config: the parent.
        dtype: serving precision.
        limit: of the device.
    """
    flops, moved_bytes, computes_in = _floor(row, config, dtype)
    rate = limit.flops_per_second.get(computes_in)
    compute_us = 1e6 * flops / rate if rate else 0.0
    memory_us = 1e6 * moved_bytes / limit.bytes_per_second if limit.bytes_per_second else 0.0
    bound = "compute" if compute_us >= memory_us else "memory traffic"
    return max(compute_us, memory_us), bound


def _floor(row: LatencyRow, config: ParentConfig, dtype: Dtype) -> tuple[float, float, str]:
    """FLOPs, bytes and dtype of what a row measured."""
    if row.subblock != "outside":
        variant = parse_variant(row.subblock, row.variant)
        at = {"batch": row.batch, "tokens": row.tokens, "context": row.context, "tp": row.tp}
        return *subblock_floor(variant, config, dtype, **at), variant.weights or dtype.name
    if row.variant == HEAD:
        head = head_work(config, dtype, batch=row.batch, tp=row.tp)
        return head.flops, head.moved_bytes, head.dtype
    return 0.0, 0.0, dtype.name
