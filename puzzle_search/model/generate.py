"""Greedy and sampled generation."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass

import torch

from puzzle_search.errors import InputError
from puzzle_search.model.decoder import HeterogeneousDecoder


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is drawn; temperature 0 is greedy.

    Raises:
        InputError: the temperature is negative, top-p outside (0, 1], or the seed beyond 63 bits.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf:
            raise InputError(
                f"temperature {self.temperature} is not a number from 0 up",
                remedy="use 0 for greedy text, about 1 for sampled text",
            )
        if not 0 < self.top_p <= 1:
            raise InputError(
                f"top_p {self.top_p} is not above 0 and at most 1",
                remedy="use 1 for no limit, a temperature of 0 for greedy text",
            )
        if not 0 <= self.seed < 2**63:
            raise InputError(
                f"seed {self.seed} is not within 0 and 2^63", remedy="use a smaller number"
            )


@torch.inference_mode()
def generate(
    model: HeterogeneousDecoder,
    ids_BL: torch.Tensor,
    *,
    max_new_tokens: int,
    sampling: Sampling | None = None,
    stop_tokens: Collection[int] = (),
) -> Iterator[torch.Tensor]:
    """Yield the next token of every sequence, (B,), until all have stopped.

    Args:
        model: the decoder.
        ids_BL: prompts of equal length.
        max_new_tokens: tokens to yield at most.
        sampling: greedy by default.
        stop_tokens: any of them ends a sequence; ended sequences repeat their last token.

    Raises:
        InputError: prompt and new tokens exceed the context of the model, or its logits are not
            finite.
    """
    sampling = sampling or Sampling()
    generator = torch.Generator(device=ids_BL.device).manual_seed(sampling.seed)
    cache = model.new_cache(batch=ids_BL.shape[0], max_length=ids_BL.shape[1] + max_new_tokens)
    stopped_B = torch.zeros(ids_BL.shape[0], dtype=torch.bool, device=ids_BL.device)
    stops = torch.tensor(sorted(stop_tokens), dtype=torch.long, device=ids_BL.device)
    last_B = ids_BL[:, -1]
    step_ids = ids_BL
    for _ in range(max_new_tokens):
        hidden_BD = model.hidden_states(step_ids, cache)[:, -1]
        next_B = _draw(_finite(model.logits(hidden_BD)), sampling, generator)
        next_B = torch.where(stopped_B, last_B, next_B)
        stopped_B |= torch.isin(next_B, stops)
        yield next_B
        if stop_tokens and bool(stopped_B.all()):
            return
        last_B, step_ids = next_B, next_B[:, None]


def _finite(logits_BV: torch.Tensor) -> torch.Tensor:
    if not bool(logits_BV.isfinite().all()):
        raise InputError(
            "the model's logits are not finite",
            remedy="check its weights, or compute in fp32",
        )
    return logits_BV


def _draw(logits_BV: torch.Tensor, sampling: Sampling, generator: torch.Generator) -> torch.Tensor:
    if sampling.temperature == 0:
        return logits_BV.argmax(-1)
    # From the likeliest down, in double precision: no temperature leads out of range.
    below_BV = (logits_BV - logits_BV.amax(-1, keepdim=True)).double()
    probabilities = (below_BV / sampling.temperature).softmax(-1).float()
    if sampling.top_p < 1:
        ordered, order = probabilities.sort(descending=True)
        outside = ordered.cumsum(-1) - ordered >= sampling.top_p
        probabilities = torch.zeros_like(probabilities).scatter(
            -1, order, ordered.masked_fill(outside, 0)
        )
    return torch.multinomial(probabilities, 1, generator=generator)[:, 0]
