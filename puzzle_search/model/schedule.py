"""The learning rate over a training run."""

from __future__ import annotations

import math

LARGEST_LEARNING_RATE = 1.0  # ten times what anyone trains with; beyond are slips


def warmup_cosine(step: int, steps: int) -> float:
    """Part of the peak at a step, the first being 0: up over 5%, then down a cosine to 0."""
    warmup = max(1, steps // 20)
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))
