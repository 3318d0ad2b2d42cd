"""The device that a child is for, by name, and what the search space costs on it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from puzzle_search.arch import ParentConfig, SearchSpace
from puzzle_search.cost import (
    CostTable,
    OperatingPoint,
    Profile,
    Scenario,
    Target,
    build_cost_table,
    parse_dtype,
)
from puzzle_search.cost.analytic import AnalyticLatency
from puzzle_search.cost.hardware import CostModel, find_cost_model
from puzzle_search.errors import InputError

_ALL_TP = (1, 2, 4, 8)
_LARGEST_BATCH = 1024
_BATCH_STEPS = 74  # each about 10% more than the last


def find_target(
    gpu: str, config: ParentConfig, *, engine: str | None = None, dtype: str | None = None
) -> Target:
    """The target of a GPU's name (its cost model) or of a profile folder.

    Args:
        gpu: name of a cost model, path of one, or a profile folder.
        config: the parent.
        engine: of the cost model; by default its first one.
        dtype: serving precision; by default the smallest that the engine has on this GPU.

    Raises:
        InputError: the GPU, engine or dtype is not known there.
    """
    if (Path(gpu) / "profile.yaml").exists():
        return profile_target(Profile.from_folder(gpu))
    model = CostModel.from_file(find_cost_model(gpu))
    engine = engine or next(iter(model.engines))
    known = model.engine(engine)
    dtype = dtype or min(known.dtypes, key=lambda name: parse_dtype(name).matrix_bytes)
    return Target(
        gpu=model.gpu,
        engine=engine,
        latency=AnalyticLatency(config, model, engine, dtype),
        memory_limit_bytes=model.memory_limit_bytes,
        dtype=parse_dtype(dtype),
        batches=tuple(sorted({round(b) for b in np.geomspace(1, _LARGEST_BATCH, _BATCH_STEPS)})),
        tp_degrees=known.tp_degrees,
    )


def profile_target(profile: Profile) -> Target:
    """The device that a profile was measured on."""
    return Target(
        gpu=str(profile.sidecar["device"]["name"]),
        engine=str(profile.sidecar["engine"]),
        latency=profile,
        memory_limit_bytes=int(profile.sidecar["memory_limit_bytes"]),
        dtype=parse_dtype(str(profile.sidecar["dtype"])),
        batches=tuple(profile.batches),
        tp_degrees=tuple(profile.tp_degrees),
    )


def parse_tp(text: str) -> tuple[int, ...]:
    """Read ``1``, ``1,2,4`` or ``any``.

    Raises:
        InputError: the text has another form.
    """
    if text == "any":
        return _ALL_TP
    parts = text.split(",")
    if not all(part.isdecimal() and int(part) in _ALL_TP for part in parts):
        raise InputError(
            f"tp {text!r} is not a list of degrees", remedy="use any, or some of 1,2,4,8"
        )
    return tuple(sorted({int(part) for part in parts}))


def cost_table(
    config: ParentConfig,
    space: SearchSpace,
    target: Target,
    scenario: Scenario,
    tp: tuple[int, ...] = (1,),
) -> CostTable:
    """Price the whole search space at every batch size of the target and these TP degrees.

    Raises:
        InputError: the target knows none of the TP degrees, or lacks a variant.
    """
    degrees = [degree for degree in tp if degree in target.tp_degrees]
    if not degrees:
        raise InputError(
            f"{target.gpu} has no costs for TP {', '.join(map(str, tp))}",
            remedy=f"use --tp {','.join(map(str, target.tp_degrees))}",
        )
    return build_cost_table(
        config,
        target,
        scenario,
        [OperatingPoint(batch=batch, tp=degree) for degree in degrees for batch in target.batches],
        attention=space.all_variants("attention"),
        ffn=space.all_variants("ffn"),
    )
