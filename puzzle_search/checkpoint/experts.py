"""How most checkpoints store the experts of a layer: one by one, gate and up apart."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from puzzle_search.arch import ParentConfig
from puzzle_search.arch.variants import Shape

ROUTER = "gate.weight"
_GATE_UP, _DOWN = "experts.gate_up_proj", "experts.down_proj"
# The module that holds router and experts, and its names of gate, up and down.
_MODULES = {
    "mixtral": ("block_sparse_moe", ("w1", "w3", "w2")),
    "qwen3_moe": ("mlp", ("gate_proj", "up_proj", "down_proj")),
}


class StoredPart(NamedTuple):
    """A tensor of a checkpoint, and where it lies in one of a subblock's (an index of it)."""

    name: str
    shape: Shape
    place: tuple[int | slice, ...]


def is_of_experts(local: str, config: ParentConfig) -> bool:
    """Whether a tensor, by its local name, is of the router or of experts that are stored apart."""
    return config.model_type in _MODULES and local in (ROUTER, _GATE_UP, _DOWN)


def stored_experts(
    layer: str, local: str, shape: Shape, config: ParentConfig
) -> Iterator[StoredPart]:
    """The tensors of a checkpoint that make up the router, or one of the experts' two.

    Args:
        layer: checkpoint name of the layer.
        local: name within the subblock.
        shape: of that tensor, experts first.
        config: the parent.
    """
    module, (gate, up, down) = _MODULES[config.model_type]
    if local == ROUTER:
        yield StoredPart(f"{layer}.{module}.{ROUTER}", shape, ())
        return
    experts, rows, columns = shape
    names = (gate, up) if local == _GATE_UP else (down,)
    rows //= len(names)
    for expert in range(experts):
        for number, name in enumerate(names):
            yield StoredPart(
                f"{layer}.{module}.experts.{expert}.{name}.weight",
                (rows, columns),
                (expert, slice(number * rows, (number + 1) * rows)),
            )
