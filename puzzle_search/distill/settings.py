"""What is learnt, how long and how fast."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from puzzle_search.errors import InputError
from puzzle_search.model.schedule import LARGEST_LEARNING_RATE, warmup_cosine

LOSSES = ("lm", "cosine", "kl")
DTYPES = ("fp32", "bf16")
_LARGEST = {"learning_rate": LARGEST_LEARNING_RATE, "max_grad_norm": 1e6}
# Change what a step costs, not what it computes: a run may be resumed with others.
_COST_ONLY = {
    "micro_batch_tokens",
    "activation_checkpointing",
    "checkpoint_every",
}


@dataclass(frozen=True, kw_only=True)
class DistillSettings:
    """How a child is distilled.

    Attributes:
        tokens: training tokens, in whole steps.
        losses: what is added up: ``lm``, ``cosine``, ``kl``.
        batch_tokens: tokens of one step.
        micro_batch_tokens: tokens that pass at once on each device; the whole step where None.
        learning_rate: peak; it warms up over the first 5% and falls to zero along a cosine.
        max_grad_norm: gradients are clipped to this norm.
        dtype: of the computation, ``fp32`` or ``bf16``; weights that are trained are fp32.
        activation_checkpointing: compute blocks again in the backward pass instead of keeping
            what is inside them.
        held_out_every: steps between losses on held-out tokens; the best of these states is kept.
        checkpoint_every: steps between checkpoints.

    Raises:
        InputError: a value cannot be used.
    """

    tokens: int
    losses: tuple[str, ...] = ("cosine", "kl")
    batch_tokens: int = 4096
    micro_batch_tokens: int | None = None
    learning_rate: float = 3e-4
    max_grad_norm: float = 1.0
    dtype: str = "fp32"
    activation_checkpointing: bool = False
    held_out_every: int = 50
    checkpoint_every: int = 50

    def __post_init__(self) -> None:
        if not self.losses or not set(self.losses) <= set(LOSSES):
            raise InputError(
                f"losses {', '.join(self.losses) or '(none)'} are not known",
                remedy=f"name one or more of {', '.join(LOSSES)}",
            )
        if self.dtype not in DTYPES:
            raise InputError(
                f"dtype {self.dtype!r} is not known", remedy=f"use one of {', '.join(DTYPES)}"
            )
        for name in ("learning_rate", "max_grad_norm"):
            value = getattr(self, name)
            if not 0 < value <= _LARGEST[name]:
                raise InputError(
                    f"{name} {value} is not above 0 and at most {_LARGEST[name]:g}",
                    remedy=f"give another {name}",
                )
        for name in ("batch_tokens", "held_out_every", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is less than 1", remedy=f"give another {name}")

    def decisive(self) -> dict[str, Any]:
        """What the result depends on, in an order of its own."""
        kept = {key: value for key, value in asdict(self).items() if key not in _COST_ONLY}
        return kept | {"losses": sorted(set(self.losses))}

    def blocks(self, length: int) -> int:
        """Blocks of tokens in a step.

        Raises:
            InputError: a step holds less than one block.
        """
        if self.batch_tokens < length:
            raise InputError(
                f"a batch of {self.batch_tokens} tokens is less than one block of {length}",
                remedy="give more batch tokens, or a shorter length",
            )
        return self.batch_tokens // length

    def step_tokens(self, length: int) -> int:
        """Tokens of a step in whole blocks."""
        return self.blocks(length) * length

    def steps(self, length: int) -> int:
        """Whole steps of training.

        Raises:
            InputError: the tokens do not fill one.
        """
        steps = self.tokens // self.step_tokens(length)
        if steps == 0:
            raise InputError(
                f"{self.tokens} tokens are less than one batch of {self.batch_tokens}",
                remedy="give more tokens, or a smaller batch",
            )
        return steps

    def learning_rate_at(self, step: int, steps: int) -> float:
        """Learning rate of a step, the first being 0."""
        return self.learning_rate * warmup_cosine(step, steps)
