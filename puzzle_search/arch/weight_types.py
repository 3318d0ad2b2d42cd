"""The type that a subblock's weights are stored in, where it is not the serving precision's."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from typing import TypeVar

from puzzle_search.errors import InputError

GGUF_BYTES = {
    "f32": 4.0,
    "bf16": 2.0,
    "f16": 2.0,
    "q8_0": 34 / 32,
    "q5_1": 24 / 32,
    "q5_0": 22 / 32,
    "q4_1": 20 / 32,
    "q4_0": 18 / 32,
}
"""Bytes per weight of the types that the `gguf` package writes, block scales among them."""

_BLOCK = 32  # weights that share a scale in the quantised of them

# NVFP4 shares an fp8 scale between 16 values.
WEIGHT_BYTES = GGUF_BYTES | {"fp8": 1.0, "nvfp4": 1 / 2 + 1 / 16}
"""Bytes per weight of every type that a variant can name."""


@dataclass(frozen=True)
class Weighted(ABC):
    """A variant with weights: its shape, and the type that its matrices are stored in.

    Vectors, and routers of experts, keep the type of vectors.

    Attributes:
        weights: a name of `WEIGHT_BYTES`; None for the serving precision's.
    """

    weights: str | None = field(default=None, kw_only=True)

    @property
    @abstractmethod
    def shape(self) -> str:
        """The canonical string without the type."""

    def __str__(self) -> str:
        return self.shape if self.weights is None else f"{self.shape}@{self.weights}"


_Variant = TypeVar("_Variant")


def with_weights(variant: _Variant, weights: str) -> _Variant:
    """A variant with its weights in a type.

    Raises:
        InputError: the type is not known, or the variant has no weights.
    """
    text = f"{variant}@{weights}"
    if not isinstance(variant, Weighted):
        raise InputError(f"{text!r}: {variant} has no weights", remedy=f"write {variant}")
    if weights not in WEIGHT_BYTES:
        raise InputError(
            f"{text!r}: weight type {weights!r} is not known",
            remedy=f"use one of {', '.join(WEIGHT_BYTES)}",
        )
    return replace(variant, weights=weights)


def gguf_type(shape: tuple[int, ...], weights: str) -> str:
    """The type of a GGUF file's matrix: rows that no block of 32 divides stay f16."""
    quantised = weights in GGUF_BYTES and GGUF_BYTES[weights] < GGUF_BYTES["f16"]
    return "f16" if quantised and shape[-1] % _BLOCK else weights


def shape_of(name: str) -> str:
    """The canonical string of a variant without the type of its weights."""
    return name.partition("@")[0]
