"""Greedy and sampled generation."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import torch

from puzzle_search.errors import InputError
from puzzle_search.model.decoder import HeterogeneousDecoder
from puzzle_search.model.sampling import Sampler, Sampling, draw


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
    samplers = [Sampler(sampling)] * ids_BL.shape[0]  # one generator for all
    cache = model.new_cache(batch=ids_BL.shape[0], max_length=ids_BL.shape[1] + max_new_tokens)
    stopped_B = torch.zeros(ids_BL.shape[0], dtype=torch.bool, device=ids_BL.device)
    stops = torch.tensor(sorted(stop_tokens), dtype=torch.long, device=ids_BL.device)
    last_B = ids_BL[:, -1]
    step_ids = ids_BL
    for _ in range(max_new_tokens):
        hidden_BD = model.hidden_states(step_ids, cache)[:, -1]
        logits_BV = _finite(model.logits(hidden_BD))
        next_B = draw(logits_BV, samplers) if sampling.temperature else logits_BV.argmax(-1)
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
