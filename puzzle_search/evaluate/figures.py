"""What every serving benchmark reports of a model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True, kw_only=True)
class ServingFigures:
    """How fast one device serves a model; times are medians (P50) and 99th percentiles.

    Attributes:
        batch: sequences at a time.
        tokens_per_second: output tokens of the device.
        ttft_ms, ttft_p99_ms: time to the first token.
        tpot_ms, tpot_p99_ms: mean time of each later token of a sequence.
        latency_ms, latency_p99_ms: time to the last token.
        memory_bytes: weights and KV cache as allocated.
        peak_bytes: the same and the most that a run allocated besides; None on a CPU.
    """

    batch: int
    tokens_per_second: float
    ttft_ms: float
    ttft_p99_ms: float
    tpot_ms: float
    tpot_p99_ms: float
    latency_ms: float
    latency_p99_ms: float
    memory_bytes: int
    peak_bytes: int | None

    @property
    def tokens_per_second_per_user(self) -> float | None:
        """Output tokens of one sequence while it decodes; None where nothing does."""
        return 1e3 / self.tpot_ms if self.tpot_ms else None

    def as_dict(self) -> dict[str, Any]:
        """All figures but the samples, by name."""
        figures = {name: value for name, value in vars(self).items() if name != "samples"}
        return figures | {"tokens_per_second_per_user": self.tokens_per_second_per_user}


def time_figures(
    *, ttft_ms: Sequence[float], tpot_ms: Sequence[float], latency_ms: Sequence[float]
) -> dict[str, float]:
    """P50 and P99 of samples, as fields of `ServingFigures`."""
    samples = {"ttft": ttft_ms, "tpot": tpot_ms, "latency": latency_ms}
    medians = {f"{name}_ms": float(np.median(taken)) for name, taken in samples.items()}
    tails = {f"{name}_p99_ms": float(np.percentile(taken, 99)) for name, taken in samples.items()}
    return medians | tails


def spread_remarks(models: Mapping[str, Mapping[str, Any]], more: str) -> Iterator[str]:
    """What to tell of models whose runs spread by more than they differ from the first.

    Args:
        models: figures of `Throughput` by the model's name.
        more: setting by which they are run more often.
    """
    (first, reference), *others = models.items()
    for name, figures in others:
        spread = max(entry["p90"] - entry["p10"] for entry in (reference, figures))
        apart = abs(figures["tokens_per_second"] - reference["tokens_per_second"])
        if spread > apart:
            yield (
                f"{name} and {first} differ by {apart:,.4g} tok/s, and their runs spread by "
                f"{spread:,.4g} (P10 to P90): which is faster is not known; raise {more}, or quiet "
                "the machine"
            )
