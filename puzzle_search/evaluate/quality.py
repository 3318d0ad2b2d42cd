"""Held-out quality of a child, next to its parent's."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

from puzzle_search.errors import InputError
from puzzle_search.model import HeterogeneousDecoder
from puzzle_search.model.losses import log_probs, token_kl

_ROWS = 16
_TOKENS = 2048  # whose logits are held at a time
_TOP = 5


@dataclass(frozen=True, kw_only=True)
class ModelQuality:
    """Means over held-out tokens; standard errors are over blocks of tokens, None of one block.

    Attributes:
        loss: next-token loss, nats.
        accuracy: share of next tokens that the model ranks first.
        top5_accuracy: share of next tokens among the model's first five.
    """

    loss: float
    loss_stderr: float | None
    accuracy: float
    accuracy_stderr: float | None
    top5_accuracy: float
    top5_accuracy_stderr: float | None

    @property
    def perplexity(self) -> float:
        """Of the next token."""
        return math.exp(self.loss)

    def as_dict(self) -> dict[str, float | None]:
        """All figures, by name."""
        return asdict(self) | {"perplexity": self.perplexity}


@dataclass(frozen=True, kw_only=True)
class Quality:
    """Parent and child on the same held-out tokens.

    Attributes:
        kl: KL(parent || child), nats per token.
        kl_stderr: its standard error, over blocks of tokens.
        agreement: share of tokens on which both rank the same token first.
        agreement_stderr: its standard error.
        tokens: how many tokens.
    """

    parent: ModelQuality
    child: ModelQuality
    kl: float
    kl_stderr: float | None
    agreement: float
    agreement_stderr: float | None
    tokens: int

    @property
    def accuracy_preserved(self) -> float | None:
        """The child's accuracy as a share of the parent's; None where the parent has none."""
        return share(self.child.accuracy, self.parent.accuracy)

    def as_dict(self) -> dict[str, Any]:
        """All figures, by name; those of a model begin with ``parent_`` or ``child_``."""
        models = {"parent": self.parent, "child": self.child}
        own = {name: value for name, value in vars(self).items() if name not in models}
        named = {
            f"{who}_{name}": value
            for who, model in models.items()
            for name, value in model.as_dict().items()
        }
        return own | named | {"accuracy_preserved": self.accuracy_preserved}


def share(child: float, parent: float) -> float | None:
    """What a child keeps of a figure; None where the parent has nothing."""
    return child / parent if parent else None


@torch.inference_mode()
def measure_quality(
    parent: HeterogeneousDecoder, child: HeterogeneousDecoder, ids: torch.Tensor
) -> Quality:
    """Compare a child with its parent on (blocks, length) held-out tokens.

    Raises:
        InputError: their vocabularies differ, or a model's figures are not finite.
    """
    if parent.config.vocab_size != child.config.vocab_size:
        raise InputError(
            f"{parent.config.name} has {parent.config.vocab_size} tokens, "
            f"{child.config.name} has {child.config.vocab_size}: they cannot be compared",
            remedy="compare a child with its own parent",
        )
    by_block: defaultdict[str, list[torch.Tensor]] = defaultdict(list)
    for rows in ids.to(parent.embedding.weight.device).split(_ROWS):
        for name, values_BL in _compare(parent, child, rows).items():
            by_block[name].append(values_BL.double().mean(dim=1))
    means = {name: _mean(torch.cat(blocks)) for name, blocks in by_block.items()}
    _check_finite(means)
    kl, agreement = means["kl"], means["agreement"]
    return Quality(
        parent=_model_quality(means, "parent"),
        child=_model_quality(means, "child"),
        kl=kl[0],
        kl_stderr=kl[1],
        agreement=agreement[0],
        agreement_stderr=agreement[1],
        tokens=ids.numel(),
    )


def _compare(
    parent: HeterogeneousDecoder, child: HeterogeneousDecoder, rows: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Figures of every token, (blocks, length); those of next tokens, (blocks, length - 1)."""
    models = {"parent": parent, "child": child}
    hidden = {name: model.hidden_states(rows).flatten(0, 1) for name, model in models.items()}
    # The last token of a block has no next one; what is compared with is dropped below.
    targets = rows.roll(-1, dims=1).flatten()
    found: defaultdict[str, list[torch.Tensor]] = defaultdict(list)
    for start in range(0, len(targets), _TOKENS):
        part = slice(start, start + _TOKENS)
        logits = {name: model.logits(hidden[name][part]) for name, model in models.items()}
        found["kl"].append(token_kl(logits["parent"], logits["child"]))
        best = {name: values.argmax(-1) for name, values in logits.items()}
        found["agreement"].append(best["parent"] == best["child"])
        target = targets[part, None]
        for name, values in logits.items():
            top = values.topk(min(_TOP, values.shape[-1]), dim=-1).indices
            found[f"{name}_loss"].append(-log_probs(values).gather(1, target)[:, 0])
            found[f"{name}_accuracy"].append(best[name] == target[:, 0])
            found[f"{name}_top5_accuracy"].append((top == target).any(-1))
    whole = {name: torch.cat(parts).view(rows.shape) for name, parts in found.items()}
    of_each_token = {"kl", "agreement"}
    return {n: v if n in of_each_token else v[:, :-1] for n, v in whole.items()}


def _mean(blocks: torch.Tensor) -> tuple[float, float | None]:
    """Mean over blocks, and its standard error, which one block does not tell."""
    stderr = float(blocks.std() / math.sqrt(len(blocks))) if len(blocks) > 1 else None
    return float(blocks.mean()), stderr


def _check_finite(means: Mapping[str, tuple[float, float | None]]) -> None:
    for who in ("parent", "child"):
        loss, _ = means[f"{who}_loss"]
        if not math.isfinite(loss):
            raise InputError(
                f"the {who}'s loss on held-out tokens is {loss}",
                remedy=f"check the weights of the {who}, or compute in fp32",
            )


def _model_quality(means: Mapping[str, tuple[float, float | None]], who: str) -> ModelQuality:
    loss, accuracy, top5 = (
        means[f"{who}_{name}"] for name in ("loss", "accuracy", "top5_accuracy")
    )
    return ModelQuality(
        loss=loss[0],
        loss_stderr=loss[1],
        accuracy=accuracy[0],
        accuracy_stderr=accuracy[1],
        top5_accuracy=top5[0],
        top5_accuracy_stderr=top5[1],
    )
