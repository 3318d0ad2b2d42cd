"""The metrics of damage, all lower is better, and their standard errors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from puzzle_search.errors import InputError

# Agreement of the k likeliest tokens is counted for these k.
TOP = {"top1_disagreement": 1, "top5_disagreement": 5, "top10_disagreement": 10}
COSINE = "hidden_cosine_distance"
METRICS = ("kl", "lm_loss", *TOP, COSINE)
DEFAULT_METRICS = ("kl", "lm_loss", "top1_disagreement", COSINE)


def parse_metrics(text: str) -> tuple[str, ...]:
    """Metrics by name, from ``all`` or a list such as ``kl,lm_loss``, in the order of METRICS.

    Raises:
        InputError: a metric is not known.
    """
    return check_metrics(METRICS if text == "all" else [n.strip() for n in text.split(",")])


def check_metrics(names: Sequence[str]) -> tuple[str, ...]:
    """The metrics in the order of METRICS.

    Raises:
        InputError: a metric is not known.
    """
    unknown = [name for name in names if name not in METRICS]
    if unknown or not names:
        raise InputError(
            f"metric {', '.join(map(repr, unknown))} is not known" if unknown else "no metrics",
            remedy=f"use all, or some of {', '.join(METRICS)}",
        )
    return tuple(name for name in METRICS if name in names)


@dataclass(frozen=True)
class Estimate:
    """A mean over tokens and its standard error over blocks of tokens."""

    value: float
    stderr: float | None

    @classmethod
    def of(cls, blocks: torch.Tensor) -> Estimate:
        """From the means of equal blocks of tokens, (blocks,); of one block no error is known."""
        count = len(blocks)
        stderr = float(blocks.std()) / math.sqrt(count) if count > 1 else None
        return cls(float(blocks.mean()), stderr)
