"""Grouped-query attention with queries, keys and values in one product."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import nn

from puzzle_search.arch import Gqa, ParentConfig, Variant
from puzzle_search.runtime.cache import LayerSlots
from puzzle_search.runtime.fuse import rotate_and_store
from puzzle_search.runtime.linear import ServingLinear
from puzzle_search.runtime.precision import Precision
from puzzle_search.runtime.step import Step
from puzzle_search.runtime.subblocks.base import ServingSubblock


class ServingGqa(ServingSubblock):
    """H query heads over K KV heads; KV heads fewer than ``tp`` are replicated."""

    def __init__(
        self, variant: Variant, config: ParentConfig, precision: Precision, *, tp: int
    ) -> None:
        assert isinstance(variant, Gqa)
        super().__init__(config, precision)
        heads, self.kv_heads = local_heads(variant, config, tp)
        self._query_scale = config.scales.query
        query_size = heads * config.head_dim
        self.entry = ServingLinear(
            query_size + 2 * self.kv_heads * config.head_dim,
            config.hidden_size,
            precision,
            bias=config.qkv_bias,
        )
        self.output = ServingLinear(
            config.hidden_size, query_size, precision, bias=config.output_bias
        )
        self.q_norm = self.k_norm = None
        if config.qk_norm:
            each = config.family.qk_norm == "head"
            self.q_norm, self.k_norm = (
                nn.Parameter(torch.ones(size, dtype=precision.activation), requires_grad=False)
                for size in (
                    (config.head_dim,) if each else (count, config.head_dim)
                    for count in (heads, self.kv_heads)
                )
            )

    def mix(self, normed_ND: torch.Tensor, step: Step, cache: LayerSlots | None) -> torch.Tensor:
        """Attend from the new tokens to all so far, or to those in the window."""
        assert cache is not None
        history = step.history(cache)  # read before new tokens take its place
        norms = None
        if self.q_norm is not None and self.k_norm is not None:
            norms = (self.q_norm, self.k_norm, self._eps)
        q_NHE, k_NKE, v_NKE = rotate_and_store(
            self.entry(normed_ND),
            step.rotary,
            norms,
            self._query_scale,
            cache.keys_BSKE,
            cache.values_BSKE,
            *step.places(cache),
        )
        attended_NHE = step.attend(q_NHE, k_NKE, v_NKE, cache, history)
        out: torch.Tensor = self.output(attended_NHE.flatten(1))
        return out

    def load_matrices(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """See `ServingSubblock`."""
        parts = ("q_proj", "k_proj", "v_proj")
        bias = None
        if self.entry.bias is not None:
            bias = torch.cat([tensors[f"{part}.bias"] for part in parts])
        self.entry.load(torch.cat([tensors[f"{part}.weight"] for part in parts]), bias)
        self.output.load(tensors["o_proj.weight"], tensors.get("o_proj.bias"))
        if self.q_norm is not None and self.k_norm is not None:
            self.q_norm.copy_(tensors["q_norm.weight"].view_as(self.q_norm))
            self.k_norm.copy_(tensors["k_norm.weight"].view_as(self.k_norm))


def local_heads(variant: Gqa, config: ParentConfig, tp: int) -> tuple[int, int]:
    """Query and KV heads on one of ``tp`` devices."""
    return math.ceil(config.num_heads / tp), math.ceil(variant.kv_heads / tp)
