"""From the engine steps of N and 2N repeats to the latency of one."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from puzzle_search.profile.engines.grid import WARM_UP_STEPS

# Decode steps averaged into one sample: a single one carries the scheduler's own jitter.
STEPS_PER_SAMPLE = 8

Steps = Sequence[tuple[float, int]]


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Quantiles of a latency over its samples, in microseconds."""

    median_us: float
    p10_us: float
    p90_us: float
    samples: int

    @property
    def spread(self) -> float:
        """(p90 - p10) / median; infinite where the median is no positive time."""
        if self.median_us <= 0:
            return float("inf")
        return (self.p90_us - self.p10_us) / self.median_us

    @property
    def error_us(self) -> float:
        """Standard error of the median.

        The middle 80% of a normal distribution are 2.56 standard deviations, and its median is
        known to 1.25 of them by the root of the samples.
        """
        return 1.25 * (self.p90_us - self.p10_us) / 2.56 / math.sqrt(self.samples)

    @property
    def is_above_zero(self) -> bool:
        """Whether the median is two standard errors from zero."""
        return self.median_us > 2 * self.error_us

    def less(self, us: float) -> Latency:
        """With so much taken off."""
        return replace(
            self,
            median_us=self.median_us - us,
            p10_us=self.p10_us - us,
            p90_us=self.p90_us - us,
        )


def prefill_sample(steps: Steps) -> float:
    """Seconds until every prompt had its first token."""
    return steps[-1][0]


def decode_samples(steps: Steps, batch: int) -> list[float]:
    """Seconds of a step in which the whole batch decodes, over groups of successive steps.

    The first steps are left out: they warm up.
    """
    full = [seconds for seconds, sequences in steps if sequences == batch]
    marks = full[WARM_UP_STEPS::STEPS_PER_SAMPLE]
    return [(end - start) / STEPS_PER_SAMPLE for start, end in itertools.pairwise(marks)]


def quantiles(samples_us: Sequence[float] | NDArray[np.float64], samples: int) -> Latency:
    """Median, p10 and p90."""
    p10, median, p90 = np.percentile(samples_us, [10, 50, 90])
    return Latency(median_us=float(median), p10_us=float(p10), p90_us=float(p90), samples=samples)


def slope(once: Sequence[float], twice: Sequence[float], blocks: int) -> Latency:
    """Latency of one of ``blocks`` repeats, from seconds of N and of 2N.

    The two children were run one after the other, so any sample of one may stand beside any of
    the other: the quantiles are those of all differences.
    """
    differences = np.subtract.outer(np.asarray(twice), np.asarray(once)) / blocks * 1e6
    return quantiles(differences.ravel(), min(len(once), len(twice)))


def rest_us(once: Sequence[float], twice: Sequence[float]) -> NDArray[np.float64]:
    """Samples of what is there without any repeat, in us, from seconds of N and of 2N."""
    differences = np.subtract.outer(np.asarray(twice), 2 * np.asarray(once))
    return np.asarray(-1e6 * differences).ravel()
