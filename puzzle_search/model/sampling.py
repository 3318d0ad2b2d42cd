"""How the next token of a sequence is drawn."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from puzzle_search.errors import InputError


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


class Sampler:
    """Draws of one sequence, or of several in turn: the seed decides them."""

    def __init__(self, sampling: Sampling) -> None:
        self.sampling = sampling
        self._generator = torch.Generator().manual_seed(sampling.seed)

    def uniform(self) -> float:
        """The next number of [0, 1)."""
        return float(torch.rand((), generator=self._generator, dtype=torch.float64))


def draw(logits_BV: torch.Tensor, samplers: Sequence[Sampler]) -> torch.Tensor:
    """A token for each row, (B,), whatever rows stand beside it.

    Args:
        logits_BV: finite.
        samplers: one a row, of temperatures above 0.
    """
    settings = [(s.sampling.temperature, s.sampling.top_p, s.uniform()) for s in samplers]
    numbers_B3 = torch.tensor(settings, dtype=torch.float64, device=logits_BV.device)
    temperature_B1, top_p_B1, uniform_B1 = numbers_B3.split(1, dim=1)
    # From the likeliest down, in double precision: no temperature leads out of range.
    below_BV = (logits_BV - logits_BV.amax(-1, keepdim=True)).double()
    mass_BV = (below_BV / temperature_B1).softmax(-1)
    token_B1 = _place(mass_BV, uniform_B1)
    # Only where it is asked for, because sorting takes longer than the rest.
    rows = [row for row, sampler in enumerate(samplers) if sampler.sampling.top_p < 1]
    if rows:
        sorted_RV, order_RV = mass_BV[rows].sort(descending=True)
        nucleus_RV = sorted_RV.masked_fill(sorted_RV.cumsum(-1) - sorted_RV >= top_p_B1[rows], 0)
        token_B1[rows] = order_RV.gather(-1, _place(nucleus_RV, uniform_B1[rows]))
    return token_B1[:, 0]


def _place(mass_BV: torch.Tensor, uniform_B1: torch.Tensor) -> torch.Tensor:
    """Where a part of the whole mass falls, (B, 1)."""
    until_BV = mass_BV.cumsum(-1)
    total_B1 = until_BV[:, -1:]
    place_B1 = torch.searchsorted(until_BV, uniform_B1 * total_B1, right=True)
    # A product that rounds up to the total still means the last token that has any mass.
    return place_B1.minimum((until_BV < total_B1).sum(-1, keepdim=True))
