"""The device of a profile, and what the search space costs on a device."""

from __future__ import annotations

from collections.abc import Sequence

from puzzle_search.arch import ParentConfig, SearchSpace
from puzzle_search.cost import (
    CostTable,
    OperatingPoint,
    Profile,
    Scenario,
    Target,
    build_cost_table,
)
from puzzle_search.cost.latency import LatencyModel
from puzzle_search.cost.measured.tensor_parallel import TensorParallelLatency
from puzzle_search.cost.modelled.constants import AllReduceConstants, Sheet
from puzzle_search.cost.modelled.hardware import device_cost_model
from puzzle_search.cost.pricing import covered_points
from puzzle_search.cost.serving import Serving, ServingOptions
from puzzle_search.errors import InputError

_ALL_TP = (1, 2, 4, 8)


def profile_target(
    profile: Profile, *, tp: tuple[int, ...] = (1,), serving: ServingOptions | None = None
) -> Target:
    """The device that a profile was measured on.

    Batch sizes lie within those whose decode steps were measured. TP degrees above 1 join the
    measured local shapes by the all-reduce of the device's cost model, and are as well known as it.

    Args:
        profile: measured.
        tp: TP degrees that are asked; those that the profile or the cost model lacks are left out.
        serving: what is asked of serving. By default batches are static, as this package's own
            runtime was timed; those of a serving engine are in flight.

    Raises:
        InputError: none of the degrees was measured, or all need the all-reduce of a device that no
            cost model ships for.
    """
    device = profile.sidecar["device"]
    degrees = tuple(degree for degree in tp if degree in profile.tp_degrees)
    if not degrees:
        raise InputError(
            f"the profile has no shards of TP {', '.join(map(str, tp))}",
            remedy=f"use --tp {','.join(map(str, profile.tp_degrees))}, or profile them",
        )
    latency: LatencyModel = profile
    if degrees != (1,):
        all_reduce = _all_reduce_of(device["name"], device["memory_bytes"])
        if all_reduce is not None:
            sheet, constants = all_reduce
            degrees = tuple(degree for degree in degrees if degree in {1, *constants.by_tp})
            latency = TensorParallelLatency(base=profile, sheet=sheet, constants=constants)
        elif 1 in degrees:
            degrees = (1,)
        else:
            raise InputError(
                f"TP {', '.join(map(str, degrees))} on {device['name']}: its shards were measured, "
                "but no cost model ships for this device, so that the all-reduce is not known",
                remedy="use --tp 1",
            )
    batches = profile.batches
    if not batches:
        raise InputError(
            f"the profile of {profile.sidecar['model']} has no time of a decode step",
            remedy="profile again while nothing else runs there: its sidecar says what was lost",
        )
    own = Serving(
        mode="in-flight" if profile.whole_steps else "static",
        max_batch=batches[-1],
        max_tokens=profile.chunk_tokens,
    )
    served = (serving or ServingOptions()).on(own)
    return Target(
        gpu=device["name"],
        engine=profile.sidecar["engine"],
        latency=latency,
        memory_limit_bytes=profile.sidecar["memory_limit_bytes"],
        dtype=profile.dtype,
        batches=tuple(batch for batch in served.batches() if batch >= batches[0]),
        tp_degrees=degrees,
        serving=served,
        measured=profile,
        error_p90=profile.sidecar["interpolation"]["p90"],
    )


def _all_reduce_of(device: str, memory_bytes: int) -> tuple[Sheet, AllReduceConstants] | None:
    """The sheet and the all-reduce of a device's shipped cost model, of its first engine."""
    model = device_cost_model(device, memory_bytes)
    if model is None:
        return None
    known = [engine.all_reduce for engine in model.engines.values() if engine.all_reduce]
    return (model.sheet, known[0]) if known else None


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
    batches: Sequence[int] | None = None,
) -> CostTable:
    """Price the whole search space at these batch sizes, by default the target's, and TP degrees.

    Where the target is a profile, batch sizes are left out whose cost in this scenario would have
    to be guessed for one of the variants.

    Raises:
        InputError: the target knows none of the TP degrees, or lacks a variant.
    """
    degrees = [degree for degree in tp if degree in target.tp_degrees]
    if not degrees:
        raise InputError(
            f"{target.gpu} has no costs for TP {', '.join(map(str, tp))}",
            remedy=f"use --tp {','.join(map(str, target.tp_degrees))}",
        )
    attention, ffn = space.all_variants("attention"), space.all_variants("ffn")
    points = [
        OperatingPoint(batch=batch, tp=degree)
        for degree in degrees
        for batch in batches or target.batches
    ]
    points = covered_points(target, scenario, points, attention=attention, ffn=ffn)
    return build_cost_table(config, target, scenario, points, attention=attention, ffn=ffn)
