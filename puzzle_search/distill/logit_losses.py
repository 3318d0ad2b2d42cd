"""KL to the parent and cross-entropy over the vocabulary, with their gradients in one pass."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd.function import once_differentiable

NO_TARGET = -100
# Logits in memory at once, per model: those that are looked at in fp32 (16 MiB), which stay in
# cache, and those whose gradient is multiplied at once.
_SLICE_LOGITS = 2**22
_CHUNK_LOGITS = 2**25


@dataclass(frozen=True, kw_only=True)
class Head:
    """Normed hidden states (N, D) and the output matrix (V, D), in the precision computed in."""

    states_ND: torch.Tensor
    weight_VD: torch.Tensor

    def logits(self, rows: slice) -> torch.Tensor:
        """Logits of some of the tokens, (rows, V), fp32."""
        return (self.states_ND[rows] @ self.weight_VD.T).float()


class LogitLosses(torch.autograd.Function):
    """Weighted sums over tokens of ``kl`` and ``lm``.

    Logits of all tokens never stand in memory: the gradient by the child's states and matrix is
    taken in the forward pass, while the logits of a slice of tokens are there, and is multiplied by
    the gradient of the loss in the backward pass.
    """

    @staticmethod
    def forward(
        ctx: Any,
        states_ND: torch.Tensor,
        weight_VD: torch.Tensor,
        parent: Head | None,
        targets_N: torch.Tensor,
        weights: Mapping[str, float],
        train: bool,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The loss and its parts.

        Args:
            ctx: of autograd.
            states_ND: the child's normed final hidden states, in the precision to compute in.
            weight_VD: the child's output matrix.
            parent: which the child is held against, unless only ``lm`` is asked for.
            targets_N: next tokens, `NO_TARGET` where there is none to learn.
            weights: of ``kl`` and ``lm``, zero where it is not asked for.
            train: whether a gradient is wanted.

        Returns:
            The sum of both, and each: (2,), without a gradient.
        """
        child = Head(states_ND=states_ND, weight_VD=weight_VD.to(states_ND.dtype))
        tokens, vocabulary = len(states_ND), len(weight_VD)
        sums = torch.zeros(2, dtype=torch.float64, device=states_ND.device)
        by_states_ND = torch.empty_like(states_ND) if train else None
        by_weight_VD: torch.Tensor | None = None
        chunk = max(1, _CHUNK_LOGITS // vocabulary)
        part = max(1, min(chunk, _SLICE_LOGITS // vocabulary))
        for start in range(0, tokens, chunk):
            end = min(start + chunk, tokens)
            by_logits_CV = states_ND.new_empty(end - start, vocabulary) if train else None
            for first in range(start, end, part):
                rows = slice(first, min(first + part, end))
                found, by_logits_TV = _slice(child, parent, targets_N[rows], rows, weights)
                sums += found
                if by_logits_CV is not None:
                    by_logits_CV[first - start : rows.stop - start] = by_logits_TV
            if by_logits_CV is not None and by_states_ND is not None:
                by_states_ND[start:end] = by_logits_CV @ child.weight_VD
                product_VD = by_logits_CV.T @ states_ND[start:end]
                if by_weight_VD is None:
                    by_weight_VD = product_VD.to(weight_VD.dtype)
                else:
                    by_weight_VD += product_VD
        ctx.gradients = (by_states_ND, by_weight_VD)
        parts = sums.float()
        ctx.mark_non_differentiable(parts)
        return parts.sum(), parts

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_loss: torch.Tensor, _: torch.Tensor) -> tuple[Any, ...]:
        """Gradients by states and matrix; they are used up."""
        by_states_ND, by_weight_VD = ctx.gradients
        del ctx.gradients
        return by_states_ND.mul_(by_loss), by_weight_VD.mul_(by_loss), None, None, None, None


def _slice(
    child: Head,
    parent: Head | None,
    targets_T: torch.Tensor,
    rows: slice,
    weights: Mapping[str, float],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weighted sums of a few tokens, (2,) in fp64, and their gradient by the child's logits."""
    own_TV = torch.log_softmax(child.logits(rows), dim=-1)
    sums = own_TV.new_zeros(2, dtype=torch.float64)
    kept_T1 = (targets_T != NO_TARGET)[:, None] * weights["lm"]
    places_T1 = targets_T.clamp_min(0)[:, None]
    if weights["lm"]:
        sums[1] = -(own_TV.gather(1, places_T1) * kept_T1).sum()
    if parent is None:
        by_TV = own_TV.exp_().mul_(kept_T1)
    else:
        theirs_TV = torch.log_softmax(parent.logits(rows), dim=-1)
        difference_TV = theirs_TV - own_TV
        by_parent_TV = theirs_TV.exp_()
        sums[0] = difference_TV.mul_(by_parent_TV).sum(dim=-1).sum(dtype=torch.float64)
        sums[0] *= weights["kl"]
        by_TV = own_TV.exp_()
        if weights["lm"]:
            by_TV.mul_(kept_T1 + weights["kl"])
            by_TV.sub_(by_parent_TV, alpha=weights["kl"])
        else:
            by_TV.sub_(by_parent_TV).mul_(weights["kl"])
    if weights["lm"]:
        by_TV.scatter_add_(1, places_T1, -kept_T1.to(by_TV.dtype))
    return sums, by_TV
