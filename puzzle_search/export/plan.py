"""What an export writes, told before anything is read or written."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from puzzle_search.arch.variants import Shape


@dataclass(frozen=True, kw_only=True)
class PlannedTensor:
    """A tensor of the engine's file.

    Attributes:
        name: in the engine's file.
        shape: rows first, as in torch.
        dtype: of the engine's file, e.g. ``q8_0``.
        bytes: in the file, without padding.
        source: the child's tensor, or what is written in place of one.
        make: reads or makes the tensor.
    """

    name: str
    shape: Shape
    dtype: str
    bytes: int
    source: str
    make: Callable[[], torch.Tensor] = field(repr=False, compare=False)


@dataclass(frozen=True, kw_only=True)
class SubstituteForm:
    """Where the engine cannot compute a subblock as it is, what it computes to the same effect."""

    where: str
    form: str
    extra_bytes: int


@dataclass(frozen=True, kw_only=True)
class ExportPlan:
    """Everything that will be written.

    Attributes:
        engine: the engine's name.
        architecture: its name for the model.
        blocks: blocks of the file.
        tensors: in the order of the file.
        forms: substitute forms, with their weights' bytes.
        notes: what else a reader should know.
        header: the engine's own keys, by name.
    """

    engine: str
    architecture: str
    blocks: int
    tensors: tuple[PlannedTensor, ...]
    forms: tuple[SubstituteForm, ...]
    notes: tuple[str, ...]
    header: dict[str, Any] = field(repr=False)

    @property
    def bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.bytes for tensor in self.tensors)

    @property
    def parameters(self) -> int:
        """Numbers in all tensors."""
        return sum(math.prod(tensor.shape) for tensor in self.tensors)

    def as_dict(self) -> dict[str, Any]:
        """The plan for machines."""
        return {
            "engine": self.engine,
            "architecture": self.architecture,
            "blocks": self.blocks,
            "parameters": self.parameters,
            "bytes": self.bytes,
            "forms": [vars(form) for form in self.forms],
            "notes": list(self.notes),
            "tensors": [
                {
                    "name": tensor.name,
                    "shape": list(tensor.shape),
                    "dtype": tensor.dtype,
                    "bytes": tensor.bytes,
                    "source": tensor.source,
                }
                for tensor in self.tensors
            ],
        }
