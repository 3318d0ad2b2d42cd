"""Mixture of SwiGLU experts (Shazeer et al. 2017), as Mixtral, Qwen3-MoE and gpt-oss route it."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from puzzle_search.arch import Moe, ParentConfig, Variant
from puzzle_search.arch.experts import SwigluClamp
from puzzle_search.model.cache import LayerCache
from puzzle_search.model.rope import RotarySlice
from puzzle_search.model.subblocks.base import SubblockModule


class Routing(NamedTuple):
    """Which token passes which expert; R rows, top-k for each token, by expert.

    Attributes:
        tokens_R: the token of each row.
        experts_R: its expert.
        gates_R: what its expert's output is multiplied by.
        ends_X: where the rows of each expert end.
    """

    tokens_R: torch.Tensor
    experts_R: torch.Tensor
    gates_R: torch.Tensor
    ends_X: torch.Tensor


def route(logits_TX: torch.Tensor, top_k: int, *, renormalised: bool) -> Routing:
    """Send each token to its experts of greatest softmax, by the router's logits."""
    gates_TK, experts_TK = F.softmax(logits_TX.float(), dim=-1).topk(top_k, dim=-1)
    if renormalised:
        gates_TK = gates_TK / gates_TK.sum(dim=-1, keepdim=True)
    experts_R, order_R = experts_TK.flatten().sort(stable=True)
    each_X = torch.arange(logits_TX.shape[1], device=logits_TX.device)
    return Routing(
        tokens_R=order_R // top_k,
        experts_R=experts_R,
        gates_R=gates_TK.flatten()[order_R].to(logits_TX.dtype),
        ends_X=torch.searchsorted(experts_R, each_X, right=True, out_int32=True),
    )


def grouped(
    x_RI: torch.Tensor,
    weight_XOI: torch.Tensor,
    routing: Routing,
    bias_XO: torch.Tensor | None = None,
) -> torch.Tensor:
    """Each row times the matrix of its expert, (R, O); in autocast's dtype, as other products."""
    device = x_RI.device.type
    if torch.is_autocast_enabled(device):  # which leaves grouped products alone
        dtype = torch.get_autocast_dtype(device)
        x_RI, weight_XOI = x_RI.to(dtype), weight_XOI.to(dtype)
    out_RO = F.grouped_mm(x_RI, weight_XOI.transpose(1, 2), offs=routing.ends_X)
    return out_RO if bias_XO is None else out_RO + bias_XO[routing.experts_R].to(out_RO.dtype)


def gated(both_R2I: torch.Tensor, clamp: SwigluClamp | None) -> torch.Tensor:
    """Channels (R, I) of the gate's half and up's: SwiGLU, or its clamped form."""
    gate_RI, up_RI = both_R2I.chunk(2, dim=-1)
    if clamp is None:
        return F.silu(gate_RI) * up_RI
    gate_RI = gate_RI.clamp(max=clamp.limit)
    up_RI = up_RI.clamp(-clamp.limit, clamp.limit)
    return gate_RI * torch.sigmoid(clamp.gain * gate_RI) * (up_RI + 1)


def summed(out_RD: torch.Tensor, routing: Routing, tokens: int) -> torch.Tensor:
    """The sum over each token's experts of what they give, times their gates, (T, D)."""
    gated_RD = out_RD * routing.gates_R[:, None]
    total_TD = gated_RD.new_zeros(tokens, gated_RD.shape[1])
    return total_TD.index_add_(0, routing.tokens_R, gated_RD)


class Experts(nn.Module):
    """The experts' weights; (X, 2 * I, D) of gate and up, (X, D, I) of down; and biases, if any."""

    def __init__(self, experts: int, hidden: int, width: int, *, bias: bool) -> None:
        super().__init__()
        self.gate_up_proj_bias = self.down_proj_bias = None
        if bias:
            self.gate_up_proj_bias = nn.Parameter(torch.empty(experts, 2 * width))
            self.down_proj_bias = nn.Parameter(torch.empty(experts, hidden))
        self.gate_up_proj = nn.Parameter(torch.empty(experts, 2 * width, hidden))
        self.down_proj = nn.Parameter(torch.empty(experts, hidden, width))


class MoeMlp(SubblockModule):
    """The sum of top-k experts for each token, weighted by the router's softmax.

    Tokens are sorted by expert, so that each expert is read once for all of them.
    """

    def __init__(self, variant: Variant, config: ParentConfig) -> None:
        assert isinstance(variant, Moe)
        assert config.experts is not None
        super().__init__(config)
        self.top_k = variant.top_k_in(config)
        self.renormalised = config.experts.renormalised
        self.clamp = config.experts.clamp
        bias, width = config.experts.bias, variant.width_in(config)
        self.gate = nn.Linear(config.hidden_size, variant.experts, bias=bias)
        self.experts = Experts(variant.experts, config.hidden_size, width, bias=bias)

    def route(self, x_TD: torch.Tensor) -> Routing:
        """Send each token to its experts, from normed input."""
        return route(self.gate(x_TD), self.top_k, renormalised=self.renormalised)

    def channels(self, x_TD: torch.Tensor, routing: Routing) -> torch.Tensor:
        """Intermediate activations (R, I) of each token in each of its experts."""
        experts = self.experts
        both_R2I = grouped(
            x_TD[routing.tokens_R], experts.gate_up_proj, routing, experts.gate_up_proj_bias
        )
        return gated(both_R2I, self.clamp)

    def outputs(self, channels_RI: torch.Tensor, routing: Routing) -> torch.Tensor:
        """What the experts give for these activations, before their gates, (R, D)."""
        experts = self.experts
        return grouped(channels_RI, experts.down_proj, routing, experts.down_proj_bias)

    def mix(
        self, x_BLD: torch.Tensor, rotary: RotarySlice, cache: LayerCache | None
    ) -> torch.Tensor:
        """Apply its experts to each token."""
        x_TD = x_BLD.flatten(0, 1)
        routing = self.route(x_TD)
        out_RD = self.outputs(self.channels(x_TD, routing), routing)
        return summed(out_RD, routing, len(x_TD)).view_as(x_BLD)
