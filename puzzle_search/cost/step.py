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
        decode_context: tokens of each of these sequences, its new one among them.
        decode_spread: how far these lie apart where they stand for sequences of evenly spread
            lengths, the longest less the shortest: it matters where a window bounds them.
        prompts: sequences of whose prompt a piece is computed; one kind of piece a step.
        prompt_tokens: new tokens of each piece.
        prompt_context: tokens of each of these sequences at the end of its piece.
        prompt_spread: how far these lie apart, likewise.
        first_tokens: prompts that end in this step, so that their first token is sampled.
        tp: tensor-parallel degree.
    """

    decoding: _Array
    decode_context: _Array
    decode_spread: _Array
    prompts: _Array
    prompt_tokens: _Array
    prompt_context: _Array
    prompt_spread: _Array
    first_tokens: _Array
    tp: int

    @classmethod
    def of(
        cls,
        *,
        tp: int,
        decoding: ArrayLike = 0.0,
        decode_context: ArrayLike = 1.0,
        decode_spread: ArrayLike = 0.0,
        prompts: ArrayLike = 0.0,
        prompt_tokens: ArrayLike = 1.0,
        prompt_context: ArrayLike | None = None,
        prompt_spread: ArrayLike = 0.0,
        first_tokens: ArrayLike | None = None,
    ) -> Step:
        """Steps of these sizes; prompts are whole and end in the step unless told otherwise."""
        fields = (
            decoding,
            decode_context,
            decode_spread,
            prompts,
            prompt_tokens,
            prompt_tokens if prompt_context is None else prompt_context,
            prompt_spread,
            prompts if first_tokens is None else first_tokens,
        )
        arrays = np.broadcast_arrays(*(np.asarray(field, np.float64) for field in fields))
        return cls(
            decoding=arrays[0],
            decode_context=arrays[1],
            decode_spread=arrays[2],
            prompts=arrays[3],
            prompt_tokens=arrays[4],
            prompt_context=arrays[5],
            prompt_spread=arrays[6],
            first_tokens=arrays[7],
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

    def decode_attended(self, window: int | None) -> _Array:
        """Tokens that each decode token attends to, on average, its own among them."""
        return mean_within(self.decode_context, self.decode_spread, window)

    def prompt_attended(self, window: int | None) -> _Array:
        """Tokens that each token of a piece attends to, on average, its own among them."""
        middle = self.prompt_context - (self.prompt_tokens - 1) / 2
        return mean_within(middle, self.prompt_tokens + self.prompt_spread, window)

    def prompt_history(self, window: int | None) -> _Array:
        """Tokens before a piece that any token of it attends to, on average."""
        before = self.prompt_context - self.prompt_tokens
        return mean_within(before, self.prompt_spread, None if window is None else window - 1)

    @property
    def sampled(self) -> _Array:
        """Sequences that the output head runs for."""
        return np.asarray(self.decoding + self.first_tokens)


def mean_within(mean: ArrayLike, spread: ArrayLike, window: int | None) -> _Array:
    """Mean of min(length, window) over lengths that are evenly spread around a mean.

    Args:
        mean: of the lengths.
        spread: the longest less the shortest.
        window: None bounds nothing.
    """
    middle, width = np.asarray(mean, np.float64), np.asarray(spread, np.float64)
    if window is None:
        return middle
    beyond = np.clip(middle + width / 2 - window, 0, width)
    partly = middle - beyond**2 / (2 * np.where(width > 0, width, 1))
    return np.where(middle - width / 2 >= window, window, partly)
