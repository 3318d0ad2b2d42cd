"""Serving subblocks by variant kind: one file each, one line in the registry."""

from __future__ import annotations

from typing import Protocol

from puzzle_search.arch import ParentConfig, Variant
from puzzle_search.errors import InputError
from puzzle_search.runtime.precision import Precision
from puzzle_search.runtime.subblocks.base import ServingSubblock
from puzzle_search.runtime.subblocks.gqa import ServingGqa, local_heads
from puzzle_search.runtime.subblocks.linear import ServingMatrix
from puzzle_search.runtime.subblocks.mlp import ServingMlp
from puzzle_search.runtime.subblocks.moe import ServingMoe


class _Builder(Protocol):
    def __call__(
        self, variant: Variant, config: ParentConfig, precision: Precision, *, tp: int
    ) -> ServingSubblock: ...


_BUILDERS: dict[str, _Builder | None] = {
    "gqa": ServingGqa,
    "mlp": ServingMlp,
    "moe": ServingMoe,
    "linear": ServingMatrix,
    "no_op": None,
}


def make_serving_subblock(
    variant: Variant, config: ParentConfig, precision: Precision, *, tp: int = 1
) -> ServingSubblock | None:
    """The subblock of a variant on torch's default device, without weights; None for a no-op.

    With ``tp`` above 1, one device's share of it.

    Raises:
        InputError: the parent has attention sinks, or clamped experts with biases, as gpt-oss.
    """
    if config.family.sinks:
        raise InputError(
            f"the runtime does not compute {config.name}: its kernels know no attention sinks",
            remedy="serve it with an engine, and price it by a cost model",
        )
    builder = _BUILDERS[variant.kind]
    return None if builder is None else builder(variant, config, precision, tp=tp)


__all__ = ["ServingSubblock", "local_heads", "make_serving_subblock"]
