"""Fit the constants of a cost model to a profile of this package.

A profile times whole subblocks, so that all operators are fitted at once, in a simple form: launch,
rate of compute and of memory for matrix products and for attention, and a cost per step outside the
blocks. What a profile measured is better read from the profile itself; the fit is for shapes and
batch sizes outside its grid. Needs scipy.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

from puzzle_search.arch import ParentConfig
from puzzle_search.cost.analytic import AnalyticLatency
from puzzle_search.cost.constants import EngineConstants, Provenance, Tile
from puzzle_search.cost.hardware import CostModel
from puzzle_search.cost.latency import Phase
from puzzle_search.cost.profile import LatencyRow, Profile
from puzzle_search.cost.residuals import Residuals, held_out
from puzzle_search.cost.roofline import roofline_engine
from puzzle_search.errors import InputError

_Array = NDArray[np.float64]

ENGINE = "torch"
"""Engine of a model fitted to a profile: this package's own, in torch."""

# Micro-kernels of matrix products on processors with 8 or 16 lanes.
_TILES = {1: (Tile(cluster=1, rows=1, columns=16), Tile(cluster=1, rows=6, columns=16))}

# Start, least and largest value of each constant.
_BOUNDS = {
    "gemm.launch_us": (10.0, 0.1, 1000.0),
    "gemm.compute_fraction": (0.5, 0.01, 1.0),
    "gemm.memory_fraction": (0.5, 0.01, 1.0),
    "prefill.launch_us": (50.0, 0.1, 1000.0),
    "prefill.compute_fraction": (0.2, 0.001, 1.0),
    "prefill.us_per_token_query_head": (0.01, 0.0, 100.0),
    "decode.floor_us": (100.0, 0.1, 1000.0),
    "decode.us_per_stream": (1.0, 0.0, 1000.0),
    "decode.memory_fraction": (0.5, 0.001, 1.0),
    "elementwise.launch_us": (20.0, 0.1, 1000.0),
    "elementwise.memory_fraction": (0.2, 0.001, 1.0),
    "step.step_us": (100.0, 0.0, 1e5),
    "step.step_us_per_sequence": (1.0, 0.0, 1e4),
}


def calibrate_profile(
    profile: Profile, config: ParentConfig, start: CostModel, *, source: str
) -> CostModel:
    """Fit one engine, ``torch``, in the profile's dtype; a fifth of the points is held out.

    Args:
        profile: measured on the device, TP 1.
        config: the parent that was profiled.
        start: its sheet is used.
        source: what the profile is, for the record.

    Raises:
        InputError: the sheet has no peak for the profile's dtype.
    """
    dtype = str(profile.sidecar["dtype"])
    if dtype not in start.sheet.flops_per_second:
        raise InputError(
            f"the sheet of {start.gpu} has no {dtype} peak, the profile's dtype",
            remedy=f"add {dtype} to flops_per_second of the sheet",
        )
    # Outside the grid of a profile nothing is known of larger steps: they are cut to its largest.
    largest = max(row.batch * row.tokens for row in profile.rows)
    bare = roofline_engine(start.sheet, max_batch=max(profile.batches), max_tokens=largest)
    bare = replace(bare, version=f"puzzle-search {profile.sidecar['package_version']}")

    def model(values: _Array, provenance: Provenance) -> CostModel:
        named = dict(zip(_BOUNDS, map(float, values), strict=True))
        return replace(start, engines={ENGINE: _engine(bare, named, dtype, provenance)})

    unknown = _provenance(source, None)
    first = compare_profile(model(_column(0), unknown), profile, config)
    train = np.concatenate([~found.held_out for found in first])

    def residual(values: _Array) -> _Array:
        found = compare_profile(model(values, unknown), profile, config)
        errors = np.concatenate([part.relative for part in found])
        return np.asarray(np.log1p(errors[train]))

    fit: Any = least_squares(
        residual,
        _column(0),
        bounds=(_column(1), _column(2)),
        loss="soft_l1",
        f_scale=0.1,
        diff_step=1e-3,
        x_scale=_column(0),
    )
    found = compare_profile(model(fit.x, unknown), profile, config)
    return model(fit.x, _provenance(source, found))


def _column(index: Literal[0, 1, 2]) -> _Array:
    return np.array([bounds[index] for bounds in _BOUNDS.values()])


def _provenance(source: str, found: list[Residuals] | None) -> Provenance:
    """Evidence of every group of constants: they were fitted together."""
    median = p90 = None
    if found:
        errors = np.concatenate([np.abs(part.relative[part.held_out]) for part in found])
        median, p90 = float(np.median(errors)), float(np.quantile(errors, 0.9))
    return Provenance(evidence="measured", source=source, error_median=median, error_p90=p90)


def _engine(
    bare: EngineConstants, values: dict[str, float], dtype: str, provenance: Provenance
) -> EngineConstants:
    """The ideal engine with these constants in place of its own."""

    def of(group: str) -> dict[str, Any]:
        prefix = f"{group}."
        return {
            name.removeprefix(prefix): v for name, v in values.items() if name.startswith(prefix)
        }

    gemm = replace(bare.gemm[dtype], provenance=provenance, tiles=_TILES, corner=1.0, **of("gemm"))
    prefill = replace(
        bare.prefill_attention[dtype],
        provenance=provenance,
        packs_groups=False,
        corner=1.0,
        **of("prefill"),
    )
    decode = bare.decode_attention[dtype]
    groups = {size: replace(group, **of("decode")) for size, group in decode.groups.items()}
    return replace(
        bare,
        gemm={dtype: gemm},
        prefill_attention={dtype: prefill},
        decode_attention={dtype: replace(decode, provenance=provenance, groups=groups)},
        elementwise=replace(bare.elementwise, provenance=provenance, **of("elementwise")),
        all_reduce=None,
        step=replace(bare.step, provenance=provenance, **of("step")),
    )


def compare_profile(model: CostModel, profile: Profile, config: ParentConfig) -> list[Residuals]:
    """Predicted against measured points, by phase.

    Raises:
        InputError: the model lacks the profile's dtype, or a TP degree of its rows.
    """
    dtype = str(profile.sidecar["dtype"])
    latency = AnalyticLatency(config, model, ENGINE, dtype)
    parts: dict[Phase, list[LatencyRow]] = {}
    for row in profile.rows:
        parts.setdefault(row.phase, []).append(row)
    return [
        Residuals(
            operator=f"whole subblocks, {phase}",
            dtype=dtype,
            measured_us=np.array([row.latency_us for row in rows]),
            predicted_us=np.concatenate(list(_predict(latency, rows))),
            held_out=held_out(
                [row.subblock for row in rows],
                [row.variant for row in rows],
                [row.batch for row in rows],
                [row.tokens for row in rows],
                [row.context for row in rows],
            ),
            kv_heads=np.zeros(len(rows), dtype=np.int64),
        )
        for phase, rows in parts.items()
    ]


def _predict(latency: AnalyticLatency, rows: list[LatencyRow]) -> list[_Array]:
    """Microseconds of each row, in order."""
    found = []
    for row in rows:
        at: dict[str, Any] = {"batch": row.batch, "tokens": row.tokens, "tp": row.tp}
        if row.subblock == "outside":
            us = latency.outside_us(row.phase, **at)
        else:
            us = latency.subblock_us(
                row.subblock, row.variant, row.phase, context=row.context, **at
            )
        found.append(np.atleast_1d(us))
    return found
