"""The losses of global distillation (Puzzle, section 5): LM, hidden cosine, KL."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from puzzle_search.data import TokenBlocks
from puzzle_search.errors import InputError
from puzzle_search.model import HeterogeneousDecoder
from puzzle_search.model.losses import token_kl

_NO_TARGET = -100
_CHUNK_LOGITS = 2**24  # logits in memory at once, 64 MiB in fp32


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
        self, ids_BL: torch.Tensor, starts_BL: torch.Tensor, terms: Collection[str]
    ) -> dict[str, torch.Tensor]:
        """Sums over tokens of the terms that are asked for, fp32.

        ``cosine``: 1 - cos between the hidden states after a block of the child and after the
        last parent layer that it stands for, mean over blocks. ``kl``: KL(parent || child) over
        the vocabulary, nats. ``lm``: cross-entropy of the next token, nats, where that is of the
        same document.

        Args:
            ids_BL: (B, L) tokens.
            starts_BL: (B, L), true at the first token of a document.
            terms: of ``lm``, ``cosine``, ``kl``.
        """
        blocks = len(self.child.blocks)
        cosine = torch.zeros((), device=ids_BL.device)
        parent_states = self._parent_states(ids_BL) if {"cosine", "kl"} & set(terms) else None
        parent_BLD = None
        for child_BLD in self.child.block_states(ids_BL, recompute=self._recompute):
            if parent_states is None:
                continue
            parent_BLD = next(parent_states)
            if "cosine" in terms:
                similar = F.cosine_similarity(child_BLD.float(), parent_BLD.float(), dim=-1)
                cosine = cosine + (1 - similar).sum() / blocks
        sums = {"cosine": cosine}
        if {"lm", "kl"} & set(terms):
            targets_BL = F.pad(ids_BL[:, 1:], (0, 1), value=_NO_TARGET)
            ends_BL = F.pad(starts_BL[:, 1:], (0, 1), value=True)
            targets_BL = targets_BL.masked_fill(ends_BL, _NO_TARGET)
            sums |= self._logit_losses(child_BLD, parent_BLD, targets_BL, terms)
        return {term: sums[term] for term in terms}

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
        terms: Collection[str],
    ) -> dict[str, torch.Tensor]:
        """Sums over chunks of tokens, whose logits are computed again in the backward pass."""
        tokens = max(1, _CHUNK_LOGITS // self.child.config.vocab_size)
        child = child_BLD.flatten(0, 1).split(tokens)
        parent = parent_BLD.flatten(0, 1).split(tokens) if parent_BLD is not None else None
        targets = targets_BL.flatten().split(tokens)
        sums = torch.zeros(2, device=child_BLD.device)
        for index, (child_TD, targets_T) in enumerate(zip(child, targets, strict=True)):
            parent_TD = parent[index] if parent is not None and "kl" in terms else None
            chunk = (child_TD, parent_TD, targets_T, "lm" in terms)
            if len(child) == 1:
                sums = sums + self._chunk_losses(*chunk)
            else:
                sums = sums + checkpoint(self._chunk_losses, *chunk, use_reentrant=False)
        return {"kl": sums[0], "lm": sums[1]}

    def _chunk_losses(
        self,
        child_TD: torch.Tensor,
        parent_TD: torch.Tensor | None,
        targets_T: torch.Tensor,
        with_lm: bool,
    ) -> torch.Tensor:
        logits_TV = self.child.logits(child_TD)
        sums = [torch.zeros((), device=child_TD.device) for _ in range(2)]
        if parent_TD is not None:
            with torch.no_grad():
                parent_TV = self.parent.logits(parent_TD)
            sums[0] = token_kl(parent_TV, logits_TV).sum()
        if with_lm:
            sums[1] = F.cross_entropy(
                logits_TV.float(), targets_T, ignore_index=_NO_TARGET, reduction="sum"
            )
        return torch.stack(sums)


def term_counts(blocks: TokenBlocks, terms: Collection[str]) -> dict[str, int]:
    """Over how many tokens each term is a mean."""
    return {
        term: max(1, blocks.num_targets) if term == "lm" else blocks.num_tokens for term in terms
    }
