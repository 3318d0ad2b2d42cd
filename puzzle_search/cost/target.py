"""What a child shall run on: a latency predictor with the device's memory and precision."""

from __future__ import annotations

from dataclasses import dataclass

from puzzle_search.cost.latency import LatencyModel
from puzzle_search.cost.measured.profile import Profile
from puzzle_search.cost.memory import Dtype
from puzzle_search.cost.serving import Serving


@dataclass(frozen=True, kw_only=True)
class Target:
    """A device with its engine and precision.

    Attributes:
        gpu: name as printed in results.
        engine: serving engine that times are of.
        latency: predicts times on this device.
        memory_limit_bytes: what weights, KV cache and activations may take on one device.
        dtype: serving precision.
        batches: batch sizes to choose from.
        tp_degrees: tensor-parallel degrees that the predictor knows and the parent can have.
        serving: how requests are served, within the engine's limits.
        measured: the profile whose points bound what can be priced; None for a cost model, which
            prices everything.
        error_p90: relative error that nine in ten measurements stayed within which were held out of
            what predicts; None where none was.
    """

    gpu: str
    engine: str
    latency: LatencyModel
    memory_limit_bytes: int
    dtype: Dtype
    batches: tuple[int, ...]
    tp_degrees: tuple[int, ...]
    serving: Serving
    measured: Profile | None = None
    error_p90: float | None = None
