"""Everything that runs over the vocabulary, one tile of the output head at a time.

With log-sum-exp F and final normed hidden states x, the KL of the parent's next-token distribution
p from a candidate's is the Bregman divergence

    KL = F(W x_candidate) - F(W x_parent) - (x_candidate - x_parent) . W^T p

so that of the parent two vectors a token are kept, x and the mean head row W^T p, and neither its
log-probabilities nor a candidate's are ever held for the whole vocabulary. Logits rounded to bf16
would not cancel in that difference. Where blocks are computed in bf16, the parent's logits z are
fp32, once for all candidates, and a candidate's are z + d with d = W (x_candidate - x_parent) in
bf16: its rounding is a part of d alone, and the same d stands in both terms of

    KL = F(z + d) - F(z) - p . d

Shape suffixes: N tokens of a chunk, D hidden, V tokens of a tile, K likeliest tokens, P picked
tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields

import torch

from puzzle_search.score.metrics import TOP

# Tiles of the head in order: number of the first token, rows of the head in fp32.
Tiles = Iterable[tuple[int, torch.Tensor]]


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What is measured: metrics, and the likeliest tokens that KL is over (None: all of them)."""

    metrics: tuple[str, ...]
    kl_top_k: int | None = None

    @property
    def compared(self) -> int:
        """Likeliest tokens of a candidate that are looked at; the first alone is its maximum."""
        largest = max((TOP[name] for name in self.metrics if name in TOP), default=0)
        return largest if largest > 1 else 0

    @property
    def parent_top(self) -> int:
        """Likeliest tokens of the parent that are kept."""
        named = [TOP[name] for name in self.metrics if name in TOP]
        return max([self.kl_top_k or 0, *named])

    @property
    def exact_kl(self) -> bool:
        """Whether KL is over the whole vocabulary."""
        return "kl" in self.metrics and self.kl_top_k is None


@dataclass(frozen=True)
class TopTokens:
    """The parent's predictions for a chunk, as far as its likeliest tokens tell."""

    log_sum_N: torch.Tensor
    next_logit_N: torch.Tensor
    ids_NK: torch.Tensor
    logits_NK: torch.Tensor

    def split(self, counts: list[int], device: torch.device) -> list[TopTokens]:
        """Parts of so many tokens, on a device."""
        parts = [getattr(self, field.name).to(device).split(counts) for field in fields(self)]
        return [TopTokens(*part) for part in zip(*parts, strict=True)]

    @classmethod
    def join(cls, parts: Sequence[TopTokens]) -> TopTokens:
        """All parts as one, on the CPU."""
        return cls(
            *(torch.cat([getattr(part, f.name) for part in parts]).cpu() for f in fields(cls))
        )


@dataclass(frozen=True, kw_only=True)
class Target:
    """What candidates are compared with on one chunk of (rows, length) tokens.

    ``normed_ND`` is there unless the likeliest tokens come from disk, ``mean_row_ND`` for exact KL
    in fp32.
    """

    top: TopTokens
    normed_ND: torch.Tensor | None = None
    mean_row_ND: torch.Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Tile:
    """Some rows of the head, for one chunk of tokens.

    Attributes:
        start: number of the first token.
        head_VD: the rows; in bf16 where candidates are computed by their difference.
        parent_NV: the parent's logits, fp32, there.
        probabilities_NV: the parent's, there.
    """

    start: int
    head_VD: torch.Tensor
    parent_NV: torch.Tensor | None = None
    probabilities_NV: torch.Tensor | None = None

    @classmethod
    def beside(cls, start: int, tile_VD: torch.Tensor, target: Target) -> Tile:
        """With the parent's logits, for candidates in bf16."""
        assert target.normed_ND is not None
        logits_NV = target.normed_ND @ tile_VD.T
        probabilities_NV = (logits_NV - target.top.log_sum_N[:, None].float()).exp_()
        head_VD = tile_VD.bfloat16()
        return cls(
            start=start,
            head_VD=head_VD,
            parent_NV=logits_NV,
            probabilities_NV=probabilities_NV,
        )


def next_ids(ids_BL: torch.Tensor) -> torch.Tensor:
    """The token after each, (N,); of the last of a row, which has none, itself."""
    return torch.cat([ids_BL[:, 1:], ids_BL[:, -1:]], dim=1).flatten()


def parent_targets(
    normed: Sequence[torch.Tensor],
    ids: Sequence[torch.Tensor],
    tiles: Tiles,
    wanted: Wanted,
    *,
    mean_rows: bool,
) -> list[Target]:
    """Targets from the parent's final normed hidden states, by chunk; mean rows if asked for."""
    sums = [
        _ParentSums(x, next_ids(part), wanted, mean_rows)
        for x, part in zip(normed, ids, strict=True)
    ]
    for start, tile in tiles:
        for chunk in sums:
            chunk.add(start, tile)
    return [chunk.target() for chunk in sums]


class _LogSum:
    """Log-sum-exp over tiles of logits, and the logits of picked tokens."""

    def __init__(self, picked_NP: torch.Tensor) -> None:
        tokens = picked_NP.shape[0]
        self.picked_NP = picked_NP
        self.logits_NP = torch.zeros(picked_NP.shape, device=picked_NP.device)
        self.peak_N = torch.full((tokens,), -torch.inf, device=picked_NP.device)
        self.total_N = torch.zeros(tokens, device=picked_NP.device)

    def add(self, start: int, logits_NV: torch.Tensor) -> torch.Tensor:
        """Take in a tile, which becomes exp(logits - peak); factor of the earlier sums, (N,)."""
        size = logits_NV.shape[1]
        local_NP = self.picked_NP - start
        inside = (local_NP >= 0) & (local_NP < size)
        found = logits_NV.gather(1, local_NP.clamp(0, size - 1))
        self.logits_NP = torch.where(inside, found, self.logits_NP)
        peak_N = torch.maximum(self.peak_N, logits_NV.amax(dim=1))
        shrink_N = (self.peak_N - peak_N).exp()
        exp_NV = logits_NV.sub_(peak_N[:, None]).exp_()
        self.total_N = self.total_N * shrink_N + exp_NV.sum(dim=1)
        self.peak_N = peak_N
        return shrink_N

    def log_sum(self) -> torch.Tensor:
        """Log-sum-exp in fp64, (N,)."""
        return self.peak_N.double() + self.total_N.double().log()


class _ParentSums:
    """The parent's log-sum, likeliest tokens and mean head row of one chunk."""

    def __init__(
        self, normed_ND: torch.Tensor, next_N: torch.Tensor, wanted: Wanted, mean_rows: bool
    ) -> None:
        self._normed_ND, self._wanted = normed_ND, wanted
        self._sum = _LogSum(next_N[:, None])
        empty = (len(next_N), 0)
        self._logits_NK = torch.empty(empty, device=normed_ND.device)
        self._ids_NK = torch.empty(empty, dtype=torch.int64, device=normed_ND.device)
        self._mean_row_ND = torch.zeros_like(normed_ND) if mean_rows else None

    def add(self, start: int, tile_VD: torch.Tensor) -> None:
        logits_NV = self._normed_ND @ tile_VD.T
        self._take_likeliest(start, logits_NV)
        shrink_N = self._sum.add(start, logits_NV)
        if self._mean_row_ND is not None:
            self._mean_row_ND.mul_(shrink_N[:, None]).addmm_(logits_NV, tile_VD)

    def _take_likeliest(self, start: int, logits_NV: torch.Tensor) -> None:
        wanted = self._wanted.parent_top
        if not wanted:
            return
        found = logits_NV.topk(min(wanted, logits_NV.shape[1]), dim=1)
        logits_NK = torch.cat([self._logits_NK, found.values], dim=1)
        ids_NK = torch.cat([self._ids_NK, found.indices + start], dim=1)
        best = logits_NK.topk(min(wanted, logits_NK.shape[1]), dim=1)
        self._logits_NK, self._ids_NK = best.values, ids_NK.gather(1, best.indices)

    def target(self) -> Target:
        mean = self._mean_row_ND
        if mean is not None:
            mean /= self._sum.total_N[:, None]
        top = TopTokens(
            log_sum_N=self._sum.log_sum(),
            next_logit_N=self._sum.logits_NP[:, 0],
            ids_NK=self._ids_NK,
            logits_NK=self._logits_NK,
        )
        return Target(top=top, mean_row_ND=mean, normed_ND=self._normed_ND)


class Tally:
    """One candidate's metrics on one chunk, tile by tile.

    Args:
        states_ND: final normed hidden states, fp32; or, in bf16, their difference to the parent's.
        ids_BL: the tokens.
        target: the parent's.
        wanted: what is measured.
    """

    def __init__(
        self, states_ND: torch.Tensor, ids_BL: torch.Tensor, target: Target, wanted: Wanted
    ) -> None:
        self._states_ND, self._target, self._wanted = states_ND, target, wanted
        self._shape = ids_BL.shape
        picked_NP = torch.cat([next_ids(ids_BL)[:, None], target.top.ids_NK], dim=1)
        self._sum = _LogSum(picked_NP)
        self._best_NK = torch.empty((len(picked_NP), 0), device=states_ND.device)
        self._linear_N = torch.zeros(len(picked_NP), device=states_ND.device)

    def add(self, tile: Tile) -> None:
        """Take in one tile of the head."""
        logits_NV = (self._states_ND @ tile.head_VD.T).float()
        if tile.parent_NV is not None and tile.probabilities_NV is not None:
            if self._wanted.exact_kl:
                self._linear_N += (logits_NV * tile.probabilities_NV).sum(dim=1)
            logits_NV += tile.parent_NV
        compared = self._wanted.compared
        if compared:
            best_NK = logits_NV.topk(min(compared, logits_NV.shape[1]), dim=1).values
            best_NK = torch.cat([self._best_NK, best_NK], dim=1)
            self._best_NK = best_NK.topk(min(compared, best_NK.shape[1]), dim=1).values
        self._sum.add(tile.start, logits_NV)

    def metrics(self) -> dict[str, torch.Tensor]:
        """Mean damage of every block of tokens, (B,) in fp64, by metric; no cosine."""
        log_sum_N, found = self._sum.log_sum(), {}
        for name in self._wanted.metrics:
            if name == "kl":
                damage_N = self._kl(log_sum_N)
            elif name == "lm_loss":
                top = self._target.top
                damage_N = log_sum_N - top.log_sum_N
                damage_N -= self._sum.logits_NP[:, 0].double() - top.next_logit_N
            elif name in TOP:
                damage_N = self._disagreement(TOP[name])
            else:
                continue
            damage_BL = damage_N.view(self._shape)
            # The last token of a block has no next one to predict.
            found[name] = (damage_BL[:, :-1] if name == "lm_loss" else damage_BL).mean(dim=1)
        return found

    def _kl(self, log_sum_N: torch.Tensor) -> torch.Tensor:
        target = self._target
        if self._wanted.exact_kl and target.mean_row_ND is None:
            return log_sum_N - target.top.log_sum_N - self._linear_N
        if target.mean_row_ND is not None and target.normed_ND is not None:
            difference_ND = self._states_ND - target.normed_ND
            linear_N = (difference_ND * target.mean_row_ND).sum(dim=1, dtype=torch.float64)
            return log_sum_N - target.top.log_sum_N - linear_N
        count = self._wanted.kl_top_k
        assert count is not None
        parent_NK = target.top.logits_NK[:, :count].double() - target.top.log_sum_N[:, None]
        own_NK = self._sum.logits_NP[:, 1 : 1 + count].double() - log_sum_N[:, None]
        return top_k_kl(parent_NK, own_NK)

    def _disagreement(self, k: int) -> torch.Tensor:
        """1 - |the parent's k likeliest tokens that are among the candidate's| / k."""
        least_N = self._sum.peak_N if k == 1 else self._best_NK[:, k - 1]
        among_N = (self._sum.logits_NP[:, 1 : 1 + k] >= least_N[:, None]).sum(dim=1)
        return 1 - among_N.double() / k


def top_k_kl(parent_NK: torch.Tensor, own_NK: torch.Tensor) -> torch.Tensor:
    """KL over k tokens and one bucket for all others, (N,), from log-probabilities in fp64.

    Never more than the KL over the whole vocabulary (data-processing inequality).
    """
    rest = [1 - log_probs.exp().sum(dim=1) for log_probs in (parent_NK, own_NK)]
    # What rounding leaves of an empty bucket counts as nothing.
    parent_rest, own_rest = (part.clamp_min(1e-9) for part in rest)
    kl_N = (parent_NK.exp() * (parent_NK - own_NK)).sum(dim=1)
    return kl_N + parent_rest * (parent_rest.log() - own_rest.log())
