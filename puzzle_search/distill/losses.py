"""The losses of global distillation (Puzzle, section 5): LM, hidden cosine, KL."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

import torch
import torch.nn.functional as F
from torch import nn

from puzzle_search.data import TokenBlocks
from puzzle_search.distill.logit_losses import NO_TARGET, Head, LogitLosses
from puzzle_search.errors import InputError
from puzzle_search.model import HeterogeneousDecoder


class Distiller(nn.Module):
    """A parent, frozen, and the child that learns from it.

    Args:
        parent: gives hidden states and logits.
        child: its blocks say, in their spec, which parent layers they stand for.
        recompute: compute blocks of the child again in the backward pass.

    Raises:
        InputError: the child is one of another parent.
    """

    def __init__(
        self, parent: HeterogeneousDecoder, child: HeterogeneousDecoder, *, recompute: bool = False
    ) -> None:
        super().__init__()
        for field in ("hidden_size", "vocab_size", "num_layers"):
            sizes = [getattr(model.config, field) for model in (parent, child)]
            if sizes[0] != sizes[1]:
                raise InputError(
                    f"the child's parent has {field} {sizes[1]}, {parent.config.name} {sizes[0]}",
                    remedy="name the parent that the child was built from",
                )
        if len(parent.blocks) != parent.config.num_layers:
            raise InputError(
                f"the parent has {len(parent.blocks)} blocks for {parent.config.num_layers} layers",
                remedy="name the parent itself, not one of its children with merged layers",
            )
        self.parent = parent.requires_grad_(False)
        self.child = child.requires_grad_(True)
        self._recompute = recompute

    def forward(
        self, ids_BL: torch.Tensor, starts_BL: torch.Tensor, weights: Mapping[str, float]
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The loss, and the terms that it is the sum of, without gradients; fp32.

        ``cosine``: 1 - cos between the hidden states after a block of the child and after the
        last parent layer that it stands for, mean over blocks. ``kl``: KL(parent || child) over
        the vocabulary, nats. ``lm``: cross-entropy of the next token, nats, where that is of the
        same document.

        Args:
            ids_BL: (B, L) tokens.
            starts_BL: (B, L), true at the first token of a document.
            weights: by which a term's sum over tokens is multiplied, of any of ``lm``, ``cosine``,
                ``kl``.
        """
        blocks = len(self.child.blocks)
        loss = torch.zeros((), device=ids_BL.device)
        terms = {}
        parent_states = self._parent_states(ids_BL) if {"cosine", "kl"} & set(weights) else None
        parent_BLD = None
        for child_BLD in self.child.block_states(ids_BL, recompute=self._recompute):
            if parent_states is None:
                continue
            parent_BLD = next(parent_states)
            if "cosine" in weights:
                similar = F.cosine_similarity(child_BLD.float(), parent_BLD.float(), dim=-1)
                loss = loss + (1 - similar).sum() * (weights["cosine"] / blocks)
        if "cosine" in weights:
            terms["cosine"] = loss.detach()
        if {"lm", "kl"} & set(weights):
            targets_BL = F.pad(ids_BL[:, 1:], (0, 1), value=NO_TARGET)
            ends_BL = F.pad(starts_BL[:, 1:], (0, 1), value=True)
            targets_BL = targets_BL.masked_fill(ends_BL, NO_TARGET)
            of_logits, parts = self._logit_losses(child_BLD, parent_BLD, targets_BL, weights)
            loss = loss + of_logits
            terms |= dict(zip(("kl", "lm"), parts, strict=True))
        return loss, {term: terms[term] for term in weights}

    @torch.no_grad()
    def _parent_states(self, ids_BL: torch.Tensor) -> Iterator[torch.Tensor]:
        """The parent's hidden states after each layer that ends a block of the child."""
        last_layers = {block.layers[-1] for block in self.child.spec.blocks}
        for layer, state_BLD in enumerate(self.parent.block_states(ids_BL)):
            if layer in last_layers:
                yield state_BLD

    def _logit_losses(
        self,
        child_BLD: torch.Tensor,
        parent_BLD: torch.Tensor | None,
        targets_BL: torch.Tensor,
        weights: Mapping[str, float],
    ) -> tuple[torch.Tensor, torch.Tensor]:
        device = child_BLD.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        parent = None
        with torch.autocast(device, enabled=False):
            if parent_BLD is not None and "kl" in weights:
                with torch.no_grad():
                    states_ND = self.parent.normed(parent_BLD).flatten(0, 1)
                    parent = Head(states_ND=states_ND, weight_VD=self.parent.head.weight)
            child_ND = self.child.normed(child_BLD).flatten(0, 1)
            losses: tuple[torch.Tensor, torch.Tensor] = LogitLosses.apply(  # type: ignore[no-untyped-call]
                child_ND.to(dtype or child_ND.dtype),
                self.child.head.weight,
                parent,
                targets_BL.flatten(),
                {"kl": weights.get("kl", 0.0), "lm": weights.get("lm", 0.0)},
                torch.is_grad_enabled(),
            )
        return losses


def term_counts(blocks: TokenBlocks, terms: Collection[str]) -> dict[str, int]:
    """Over how many tokens each term is a mean."""
    return {
        term: max(1, blocks.num_targets) if term == "lm" else blocks.num_tokens for term in terms
    }
