"""A device of which a cost model is known, with an engine and a precision, as a target."""

from __future__ import annotations

from puzzle_search.arch import ParentConfig
from puzzle_search.cost.memory import parse_dtype
from puzzle_search.cost.modelled.analytic import AnalyticLatency
from puzzle_search.cost.modelled.hardware import CostModel
from puzzle_search.cost.serving import Serving, ServingOptions
from puzzle_search.cost.target import Target


def modelled_target(
    model: CostModel,
    config: ParentConfig,
    *,
    engine: str,
    dtype: str,
    serving: ServingOptions | None = None,
) -> Target:
    """What a parent's children run on, by a cost model.

    Args:
        model: of the device.
        config: the parent, whose query heads a TP degree must divide.
        engine: of the cost model.
        dtype: serving precision.
        serving: what is asked of serving; the rest is the engine's own.

    Raises:
        InputError: the engine or its dtype is not known there, or serving is out of its range.
    """
    known = model.engine(engine)
    own = Serving(max_batch=known.step.max_batch, max_tokens=known.step.max_tokens)
    served = (serving or ServingOptions()).on(own)
    return Target(
        gpu=model.gpu,
        engine=engine,
        latency=AnalyticLatency(config, model, engine, dtype),
        memory_limit_bytes=model.memory_limit_bytes,
        dtype=parse_dtype(dtype),
        batches=served.batches(),
        tp_degrees=tuple(degree for degree in known.tp_degrees if config.num_heads % degree == 0),
        serving=served,
        error_p90=known.step.provenance.error_p90,
    )
