"""Held-out quality of a child, next to its parent's."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F

from puzzle_search.errors import InputError
from puzzle_search.model import HeterogeneousDecoder
from puzzle_search.model.losses import token_kl

_ROWS = 16


@dataclass(frozen=True, kw_only=True)
class Quality:
    """Means over held-out tokens.

    Attributes:
        kl: KL(parent || child), nats per token.
        kl_stderr: its standard error, over blocks of tokens.
        parent_loss: the parent's next-token loss, nats.
        child_loss: the child's.
        parent_accuracy: share of next tokens that the parent ranks first.
        child_accuracy: the child's.
        agreement: share of tokens on which both rank the same token first.
        tokens: how many tokens.
    """

    kl: float
    kl_stderr: float
    parent_loss: float
    child_loss: float
    parent_accuracy: float
    child_accuracy: float
    agreement: float
    tokens: int

    @property
    def accuracy_preserved(self) -> float | None:
        """The child's accuracy as a share of the parent's; None where the parent has none."""
        return self.child_accuracy / self.parent_accuracy if self.parent_accuracy else None

    def as_dict(self) -> dict[str, Any]:
        """All figures, by name."""
        return asdict(self) | {"accuracy_preserved": self.accuracy_preserved}


@torch.inference_mode()
def measure_quality(
    parent: HeterogeneousDecoder, child: HeterogeneousDecoder, ids: torch.Tensor
) -> Quality:
    """Compare a child with its parent on (blocks, length) held-out tokens.

    Raises:
        InputError: their vocabularies differ.
    """
    if parent.config.vocab_size != child.config.vocab_size:
        raise InputError(
            f"{parent.config.name} has {parent.config.vocab_size} tokens, "
            f"{child.config.name} has {child.config.vocab_size}: they cannot be compared",
            remedy="compare a child with its own parent",
        )
    kl, losses, correct, agree = [], [], [], []
    for rows in ids.split(_ROWS):
        logits = [model(rows) for model in (parent, child)]
        kl.append(token_kl(*logits).mean(dim=1))
        target = rows[:, 1:]
        ranked = [part.argmax(-1) for part in logits]
        agree.append((ranked[0] == ranked[1]).float().mean(dim=1))
        losses.append(
            torch.stack(
                [
                    F.cross_entropy(part[:, :-1].transpose(1, 2), target, reduction="none").mean(
                        dim=1
                    )
                    for part in logits
                ]
            )
        )
        correct.append(
            torch.stack([(best[:, :-1] == target).float().mean(dim=1) for best in ranked])
        )
    kl_all = torch.cat(kl).double()
    loss_all, correct_all = torch.cat(losses, dim=1), torch.cat(correct, dim=1)
    return Quality(
        kl=float(kl_all.mean()),
        kl_stderr=float(kl_all.std() / math.sqrt(len(kl_all))) if len(kl_all) > 1 else 0.0,
        parent_loss=float(loss_all[0].mean()),
        child_loss=float(loss_all[1].mean()),
        parent_accuracy=float(correct_all[0].mean()),
        child_accuracy=float(correct_all[1].mean()),
        agreement=float(torch.cat(agree).mean()),
        tokens=ids.numel(),
    )
