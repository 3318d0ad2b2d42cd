"""Fit the constants of a cost model to a profile of this package.

A profile times whole subblocks, so that all operators are fitted at once, in a simple form: launch,
rate of compute and of memory for matrix products and for attention, and a cost per step outside the
blocks. Rows of TP 1 are fitted: those of its shards lack the all-reduce, which nothing here times.
What a profile measured is better read from the profile itself; the fit is for shapes and batch
sizes outside its grid. Needs scipy.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

from puzzle_search.cost.fitting.residuals import Residuals, held_out
from puzzle_search.cost.latency import Phase
from puzzle_search.cost.measured.profile import Profile
from puzzle_search.cost.measured.profile_rows import HEAD, STEP, LatencyRow
from puzzle_search.cost.modelled.analytic import AnalyticLatency
from puzzle_search.cost.modelled.constants import (
    DecodeAttentionConstants,
    EngineConstants,
    PrefillAttentionConstants,
    Provenance,
)
from puzzle_search.cost.modelled.hardware import CostModel
from puzzle_search.cost.modelled.roofline import roofline_engine
from puzzle_search.cost.step import Step
from puzzle_search.errors import InputError

_Array = NDArray[np.float64]

ENGINE = "torch"
"""Engine of a model fitted to a profile: this package's own, in torch."""

# Start, least and largest value of each constant, by kind of device.
_CPU_BOUNDS = {
    "gemm.launch_us": (10.0, 0.1, 1000.0),
    "gemm.compute_fraction": (0.5, 0.01, 1.0),
    "gemm.memory_fraction": (0.5, 0.01, 1.0),
    "prefill.launch_us": (50.0, 0.1, 1000.0),
    "prefill.compute_fraction": (0.2, 0.001, 1.0),
    "prefill.memory_fraction": (0.2, 0.001, 1.0),
    "decode.floor_us": (100.0, 0.1, 1000.0),
    "decode.us_per_stream": (1.0, 0.0, 1000.0),
    "decode.memory_fraction": (0.5, 0.001, 1.0),
    "elementwise.launch_us": (20.0, 0.1, 1000.0),
    "elementwise.memory_fraction": (0.2, 0.001, 1.0),
    "step.step_us": (100.0, 0.0, 1e5),
    "step.step_us_per_sequence": (1.0, 0.0, 1e4),
}
_GPU_BOUNDS = {
    "gemm.launch_us": (4.0, 0.1, 50.0),
    "gemm.compute_fraction": (0.7, 0.05, 1.0),
    "gemm.memory_fraction": (0.8, 0.1, 1.0),
    "prefill.launch_us": (10.0, 0.1, 100.0),
    "prefill.compute_fraction": (0.5, 0.01, 1.0),
    "prefill.memory_fraction": (0.5, 0.01, 1.0),
    "decode.floor_us": (7.0, 0.1, 100.0),
    "decode.us_per_stream": (1e-2, 0.0, 1.0),
    "decode.memory_fraction": (0.5, 0.001, 1.0),
    "elementwise.launch_us": (2.5, 0.1, 50.0),
    "elementwise.memory_fraction": (0.8, 0.01, 1.0),
    "step.step_us": (20.0, 0.0, 1e4),
    "step.step_us_per_sequence": (0.1, 0.0, 100.0),
}


def calibrate_profile(profile: Profile, start: CostModel, *, source: str) -> CostModel:
    """Fit one engine, ``torch``, in the profile's dtype; a fifth of the points is held out.

    Args:
        profile: measured on the device, TP 1 among others.
        start: its sheet is used.
        source: what the profile is, for the record.

    Raises:
        InputError: the sheet has no peak for the profile's dtype, or TP 1 was not measured.
    """
    dtype = profile.dtype.name
    if dtype not in start.sheet.flops_per_second:
        raise InputError(
            f"the sheet of {start.gpu} has no {dtype} peak, the profile's dtype",
            remedy=f"add {dtype} to flops_per_second of the sheet",
        )
    if 1 not in profile.tp_degrees:
        raise InputError(
            "the profile has shards of a TP group only, and none of their all-reduce",
            remedy="profile TP 1 too",
        )
    bare = roofline_engine(
        start.sheet, max_batch=max(profile.batches), max_tokens=profile.chunk_tokens
    )
    bare = replace(bare, version=f"puzzle-search {profile.sidecar['package_version']}")
    cpu = profile.sidecar["device"].get("kind") == "cpu"
    bounds = _CPU_BOUNDS if cpu else _GPU_BOUNDS
    begin, least, largest = np.array(list(bounds.values())).T

    def model(values: _Array, provenance: Provenance) -> CostModel:
        named = dict(zip(bounds, map(float, values), strict=True))
        engine = _engine(bare, named, profile, provenance)
        return replace(start, engines={ENGINE: engine})

    unknown = _provenance(source, None)
    first = compare_profile(model(begin, unknown), profile)
    train = np.concatenate([~found.held_out for found in first])

    def residual(values: _Array) -> _Array:
        found = compare_profile(model(values, unknown), profile)
        errors = np.concatenate([part.relative for part in found])
        return np.asarray(np.log1p(errors[train]))

    fit: Any = least_squares(
        residual,
        begin,
        bounds=(least, largest),
        loss="soft_l1",
        f_scale=0.1,
        diff_step=1e-3,
        x_scale=begin,
    )
    found = compare_profile(model(fit.x, unknown), profile)
    return model(fit.x, _provenance(source, found))


def _provenance(source: str, found: list[Residuals] | None) -> Provenance:
    """Evidence of every group of constants: they were fitted together."""
    median = p90 = None
    if found:
        errors = np.concatenate([np.abs(part.relative[part.held_out]) for part in found])
        median, p90 = float(np.median(errors)), float(np.quantile(errors, 0.9))
    return Provenance(evidence="measured", source=source, error_median=median, error_p90=p90)


def _engine(
    bare: EngineConstants,
    values: dict[str, float],
    profile: Profile,
    provenance: Provenance,
) -> EngineConstants:
    """The ideal engine with these constants in place of its own."""
    dtype, head_dim = profile.dtype.name, profile.config.head_dim

    def of(group: str) -> dict[str, Any]:
        prefix = f"{group}."
        return {
            name.removeprefix(prefix): v for name, v in values.items() if name.startswith(prefix)
        }

    gemm = replace(bare.gemm[dtype], provenance=provenance, corner=1.0, **of("gemm"))
    # The output head is bf16 under fp8, and not timed apart.
    gemms = {dtype: gemm, "bf16": gemm} if dtype == "fp8" else {dtype: gemm}
    (chunk,) = bare.prefill_attention[dtype].head_dims.values()
    (step,) = bare.decode_attention[dtype].head_dims.values()
    prefill = PrefillAttentionConstants(
        provenance=provenance, head_dims={head_dim: replace(chunk, corner=1.0, **of("prefill"))}
    )
    decode = DecodeAttentionConstants(
        provenance=provenance, head_dims={head_dim: replace(step, **of("decode"))}
    )
    return replace(
        bare,
        gemm=gemms,
        prefill_attention={dtype: prefill},
        decode_attention={dtype: decode},
        elementwise=replace(bare.elementwise, provenance=provenance, **of("elementwise")),
        all_reduce=None,
        step=replace(bare.step, provenance=provenance, **of("step")),
    )


def compare_profile(model: CostModel, profile: Profile) -> list[Residuals]:
    """Predicted against measured points of TP 1, by phase; what is outside the blocks as one.

    Raises:
        InputError: the model lacks the profile's dtype.
    """
    latency = AnalyticLatency(profile.config, model, ENGINE, profile.dtype.name)
    return [
        Residuals(
            operator=f"whole subblocks, {phase}",
            dtype=profile.dtype.name,
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
        for phase, rows in _measured(profile).items()
    ]


def _measured(profile: Profile) -> dict[Phase, list[LatencyRow]]:
    """Rows to compare with; those outside the blocks summed to whole decode steps."""
    parts: dict[Phase, list[LatencyRow]] = {}
    whole = STEP if profile.whole_steps else HEAD
    for row in profile.rows:
        if row.tp != 1 or (row.subblock == "outside" and row.variant != whole):
            continue
        if row.subblock == "outside":
            step = _step_of(row)
            if row.phase == "prefill" or not profile.covers([], step):
                continue
            row = replace(row, latency_us=float(profile.outside_us(step)))
        parts.setdefault(row.phase, []).append(row)
    return parts


def _step_of(row: LatencyRow) -> Step:
    """The step that a row was measured in; prompts end in it."""
    if row.phase == "decode":
        return Step.of(tp=row.tp, decoding=row.batch, decode_context=row.context)
    return Step.of(
        tp=row.tp, prompts=row.batch, prompt_tokens=row.tokens, prompt_context=row.context
    )


def _predict(latency: AnalyticLatency, rows: list[LatencyRow]) -> list[_Array]:
    """Microseconds of each row, in order."""
    return [
        np.atleast_1d(
            latency.outside_us(_step_of(row))
            if row.subblock == "outside"
            else latency.subblock_us(row.subblock, row.variant, _step_of(row))
        )
        for row in rows
    ]
