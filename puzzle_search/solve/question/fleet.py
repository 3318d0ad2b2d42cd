"""One question asked of several GPUs: which is the cheapest that meets it?"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from puzzle_search.choices import Backend
from puzzle_search.errors import InfeasibleError, InputError
from puzzle_search.solve.question.answer import Answer
from puzzle_search.solve.question.ask import Question, ask
from puzzle_search.solve.search.search import DEFAULT_BACKEND


@dataclass(frozen=True, kw_only=True)
class Offer:
    """A GPU, and what an hour of one costs, if that is known."""

    gpu: str
    usd_per_hour: float | None


@dataclass(frozen=True, kw_only=True)
class Quote:
    """What a GPU gives: an answer, or why there is none."""

    offer: Offer
    answer: Answer | None
    refusal: str

    @property
    def usd_per_million_tokens(self) -> float | None:
        """Of output tokens in the first scenario."""
        if self.answer is None or self.offer.usd_per_hour is None:
            return None
        per_second = self.answer.solution.cost.tokens_per_second_per_gpu
        return self.offer.usd_per_hour / 3600 / per_second * 1e6

    def as_dict(self) -> dict[str, Any]:
        """The quote as ``solve --json`` prints it."""
        return {
            "gpu": self.offer.gpu,
            "usd_per_hour": self.offer.usd_per_hour,
            "usd_per_million_tokens": self.usd_per_million_tokens,
            "answer": None if self.answer is None else self.answer.as_dict(),
            "refusal": self.refusal or None,
        }


def parse_offers(text: str) -> list[Offer]:
    """Read ``h100``, ``l40s,h100,h200`` or ``l40s=0.9,h100=2.5``.

    Raises:
        InputError: the text has another form, or only some GPUs have a price.
    """
    offers = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*([^=]+?)\s*(?:=\s*([0-9]*\.?[0-9]+)\s*)?", part)
        price = float(match[2]) if match and match[2] else None
        if match is None or price == 0:
            raise InputError(
                f"gpu {part!r} is neither a name nor NAME=USD_PER_HOUR",
                remedy="write for example h100, or l40s=0.9,h100=2.5",
            )
        offers.append(Offer(gpu=match[1], usd_per_hour=price))
    if len({offer.usd_per_hour is None for offer in offers}) > 1:
        raise InputError(
            f"gpu {text!r} gives a price for some only", remedy="price all GPUs, or none"
        )
    return offers


def ask_fleet(
    question: Question,
    offers: Sequence[Offer],
    *,
    max_seconds: float = 60.0,
    backend: Backend = DEFAULT_BACKEND,
) -> list[Quote]:
    """Ask each GPU in turn. One that cannot be used for it has a refusal, not an error.

    Raises:
        InputError: none of them can be used at all.
    """
    quotes: list[Quote] = []
    unusable: list[InputError] = []
    for offer in offers:
        answer, refusal = None, ""
        try:
            answer = ask(replace(question, gpu=offer.gpu), max_seconds=max_seconds, backend=backend)
        except InfeasibleError as error:
            refusal = error.message
        except InputError as error:
            refusal = error.message
            unusable.append(error)
        quotes.append(Quote(offer=offer, answer=answer, refusal=refusal))
    if len(unusable) == len(offers):
        if len({error.message for error in unusable}) == 1:
            raise unusable[0]
        reasons = "\n  ".join(f"{quote.offer.gpu}: {quote.refusal}" for quote in quotes)
        raise InputError(f"none of these GPUs can be used\n  {reasons}", remedy=unusable[0].remedy)
    return quotes


def cheapest(quotes: Sequence[Quote]) -> Quote:
    """The least per token where prices are known, else the first in the order that was given.

    Raises:
        InfeasibleError: no GPU meets the question.
    """
    met = [quote for quote in quotes if quote.answer is not None]
    if not met:
        reasons = "\n  ".join(f"{quote.offer.gpu}: {quote.refusal}" for quote in quotes)
        raise InfeasibleError(
            f"none of these GPUs meets the limits\n  {reasons}",
            remedy="loosen the limits, or name other GPUs",
        )
    return min(met, key=lambda quote: _or_infinite(quote.usd_per_million_tokens))


def _or_infinite(value: float | None) -> float:
    return math.inf if value is None else value
