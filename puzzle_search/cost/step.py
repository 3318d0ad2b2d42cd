"""What an engine computes in one step: decode tokens of running requests, pieces of prompts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

_Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Step:
    """One engine step, or an array of them: the fields broadcast together.

    Attributes:
        decoding: sequences that decode one token each.
        decode_context: tokens that each of these attends to, its new one among them.
        prompts: sequences of whose prompt a piece is computed; one kind of piece a step.
        prompt_tokens: new tokens of each piece.
        prompt_context: tokens of each of these sequences at the end of its piece.
        first_tokens: prompts that end in this step, so that their first token is sampled.
        tp: tensor-parallel degree.
    """

    decoding: _Array
    decode_context: _Array
    prompts: _Array
    prompt_tokens: _Array
    prompt_context: _Array
    first_tokens: _Array
    tp: int

    @classmethod
    def of(
        cls,
        *,
        tp: int,
        decoding: ArrayLike = 0.0,
        decode_context: ArrayLike = 1.0,
        prompts: ArrayLike = 0.0,
        prompt_tokens: ArrayLike = 1.0,
        prompt_context: ArrayLike | None = None,
        first_tokens: ArrayLike | None = None,
    ) -> Step:
        """Steps of these sizes; prompts are whole and end in the step unless told otherwise."""
        fields = (
            decoding,
            decode_context,
            prompts,
            prompt_tokens,
            prompt_tokens if prompt_context is None else prompt_context,
            prompts if first_tokens is None else first_tokens,
        )
        arrays = np.broadcast_arrays(*(np.asarray(field, np.float64) for field in fields))
        return cls(
            decoding=arrays[0],
            decode_context=arrays[1],
            prompts=arrays[2],
            prompt_tokens=arrays[3],
            prompt_context=arrays[4],
            first_tokens=arrays[5],
            tp=tp,
        )

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the array of steps."""
        return self.decoding.shape

    @property
    def rows(self) -> _Array:
        """New tokens: the rows of every matrix product."""
        return np.asarray(self.decoding + self.prompts * self.prompt_tokens)

    @property
    def sampled(self) -> _Array:
        """Sequences that the output head runs for."""
        return np.asarray(self.decoding + self.first_tokens)
