"""What an initialiser may look at: one parent subblock, and what it saw and gave, streamed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property
from typing import NamedTuple

import torch

from puzzle_search.arch import ParentConfig, Subblock
from puzzle_search.model import SubblockModule
from puzzle_search.model.rope import RotarySlice
from puzzle_search.model.subblocks.gqa import GqaAttention
from puzzle_search.model.subblocks.mlp import SwigluMlp
from puzzle_search.model.subblocks.moe import MoeMlp

Tensors = dict[str, torch.Tensor]


class ExpertSums(NamedTuple):
    """Sums over the tokens that pass each of X experts, in fp32.

    Attributes:
        tokens_X: 1.
        gates_X: the gate.
        outputs_X: gate * ||output||.
        channels_XI: gate * |X_i| of each of the I channels.
    """

    tokens_X: torch.Tensor
    gates_X: torch.Tensor
    outputs_X: torch.Tensor
    channels_XI: torch.Tensor


class Calibration:
    """One parent subblock with sums over calibration tokens, made when first asked for.

    The tokens pass through in chunks; what is kept does not grow with their number.

    Args:
        config: the parent's shape.
        subblock: attention or FFN.
        module: the parent's subblock.
        chunks: gives the hidden states before and after the subblock, both (B, L, D), chunk by
            chunk; called once for each kind of sum.
        rotary: angles of the positions in a chunk.
    """

    def __init__(
        self,
        config: ParentConfig,
        subblock: Subblock,
        module: SubblockModule,
        chunks: Callable[[], Iterator[tuple[torch.Tensor, torch.Tensor]]],
        rotary: RotarySlice,
    ) -> None:
        self.config = config
        self.subblock = subblock
        self._module = module
        self._chunks = chunks
        self._rotary = rotary

    @property
    def tensors(self) -> Tensors:
        """The parent's tensors by local name in fp32; copies, since students train in place."""
        return {
            name: value.detach().to(torch.float32, copy=True)
            for name, value in self._module.state_dict().items()
        }

    @cached_property
    @torch.no_grad()
    def activity(self) -> torch.Tensor:
        """Mean |X_i| of the channels that the output projection reads.

        (I,) of an FFN; (H * E,), what the query heads attended to, of an attention.
        """
        module, total, tokens = self._module, None, 0
        for before, _ in self._chunks():
            inputs = module.inputs(before)
            if isinstance(module, SwigluMlp):
                channels = module.channels(inputs)
            else:
                assert isinstance(module, GqaAttention)
                channels = module.heads(inputs, self._rotary, None)
            part = channels.abs().flatten(0, 1).sum(dim=0, dtype=torch.float64)
            total = part if total is None else total + part
            tokens += before.shape[0] * before.shape[1]
        assert total is not None
        return (total / tokens).float()

    @cached_property
    @torch.no_grad()
    def expert_sums(self) -> ExpertSums:
        """What passes each expert of a mixture."""
        module = self._module
        assert isinstance(module, MoeMlp)
        experts, _, width = module.experts.down_proj.shape
        total = module.norm.weight.new_zeros(experts, 3 + width, dtype=torch.float64)
        for before, _ in self._chunks():
            x_TD = module.inputs(before).flatten(0, 1)
            routing = module.route(x_TD)
            gates_R = routing.gates_R.double()
            channels_RI = module.channels(x_TD, routing)
            norms_R = module.outputs(channels_RI, routing).double().norm(dim=1)
            parts = [torch.ones_like(gates_R), gates_R, gates_R * norms_R]
            summands = torch.cat(
                [torch.stack(parts, dim=1), channels_RI.double().abs() * gates_R[:, None]], dim=1
            )
            total.index_add_(0, routing.experts_R, summands)
        tokens_X, gates_X, outputs_X = total[:, :3].float().unbind(1)
        return ExpertSums(tokens_X, gates_X, outputs_X, channels_XI=total[:, 3:].float())

    @cached_property
    @torch.no_grad()
    def least_squares_sums(self) -> tuple[torch.Tensor, torch.Tensor]:
        """X'X and X'Y in fp64, (D, D) each, of what its matrices read, X, and make of it, Y."""
        gram = cross = None
        for before, after in self._chunks():
            inputs = self._module.inputs(before)
            x_TD, y_TD = (
                part.flatten(0, 1).double() for part in (inputs, self._mixed(inputs, before, after))
            )
            parts = x_TD.T @ x_TD, x_TD.T @ y_TD
            gram = parts[0] if gram is None else gram.add_(parts[0])
            cross = parts[1] if cross is None else cross.add_(parts[1])
        assert gram is not None
        assert cross is not None
        return gram, cross

    def _mixed(
        self, inputs: torch.Tensor, before: torch.Tensor, after: torch.Tensor
    ) -> torch.Tensor:
        """What the matrices gave: what was added, unless a norm stands between."""
        if self._module.norm_after:
            return self._module.mix(inputs, self._rotary, None)
        return (after.double() - before.double()) / self._module.residual_scale
