"""The initialisers by variant kind and name."""

from __future__ import annotations

from collections.abc import Callable, Collection

from puzzle_search.arch import Gqa, Variant
from puzzle_search.errors import InputError
from puzzle_search.library.initialise.calibration import Calibration, Tensors
from puzzle_search.library.initialise.channels.channel_contribution import channel_contribution
from puzzle_search.library.initialise.channels.channel_magnitude import channel_magnitude
from puzzle_search.library.initialise.experts.gated_output import gated_output
from puzzle_search.library.initialise.experts.router_frequency import router_frequency
from puzzle_search.library.initialise.kv_heads.activation_weighted import activation_weighted
from puzzle_search.library.initialise.kv_heads.first_head import first_head
from puzzle_search.library.initialise.kv_heads.mean_pool import mean_pool
from puzzle_search.library.initialise.linear.least_squares import least_squares
from puzzle_search.library.initialise.linear.product import product
from puzzle_search.library.initialise.no_op import no_op

INITIALISERS: dict[str, dict[str, Callable[[Variant, Calibration], Tensors]]] = {
    "gqa": {
        "mean_pool": mean_pool,
        "first_head": first_head,
        "activation_weighted": activation_weighted,
    },
    "mlp": {
        "channel_contribution": channel_contribution,
        "channel_magnitude": channel_magnitude,
    },
    "moe": {"gated_output": gated_output, "router_frequency": router_frequency},
    "linear": {"product": product, "least_squares": least_squares},
    "no_op": {"no_op": no_op},
}


def check_initialisers(names: Collection[str]) -> None:
    """Check that all names are known.

    Raises:
        InputError: one is not.
    """
    known = [name for methods in INITIALISERS.values() for name in methods]
    for name in names:
        if name not in known:
            raise InputError(
                f"{name!r} is not an initialiser", remedy=f"use some of {', '.join(known)}"
            )


def initial_candidates(
    variant: Variant, calibration: Calibration, allowed: Collection[str] = ()
) -> dict[str, Tensors]:
    """Initial tensors of a variant by the name of the method that made them.

    The parent's own variant is a copy of the parent's subblock; so is its attention in a window.

    Args:
        variant: what to begin.
        calibration: the parent's subblock.
        allowed: names of initialisers; a kind of which none is named takes all of its own.
    """
    config = calibration.config
    own = config.attention if calibration.subblock == "attention" else config.ffn
    unwindowed = Gqa(variant.kv_heads) if isinstance(variant, Gqa) else variant
    if str(unwindowed) == own:
        return {"parent": calibration.tensors}
    methods = INITIALISERS[variant.kind]
    chosen = [name for name in methods if name in allowed] or list(methods)
    return {name: methods[name](variant, calibration) for name in chosen}
