"""Subblock modules by variant kind: one file each, one line in the registry.

Every module owns its RMSNorm and adds its output to the residual stream, so that its state dict
is ``norm.weight`` and the tensors that its variant names, and nothing at all for a no-op.
Shape suffixes: B batch, L new tokens, S attended tokens, D hidden, H query heads, K KV heads,
G query heads per KV head, E head size; of experts T tokens, X experts, K experts of a token, R
rows (T * K), I intermediate size.
"""

from __future__ import annotations

from typing import Protocol

from puzzle_search.arch import ParentConfig, Variant
from puzzle_search.model.subblocks.base import SubblockModule
from puzzle_search.model.subblocks.gqa import GqaAttention
from puzzle_search.model.subblocks.linear import LinearSubblock
from puzzle_search.model.subblocks.mlp import SwigluMlp
from puzzle_search.model.subblocks.moe import MoeMlp
from puzzle_search.model.subblocks.no_op import NoOpSubblock


class _Builder(Protocol):
    def __call__(self, variant: Variant, config: ParentConfig) -> SubblockModule: ...


_BUILDERS: dict[str, _Builder] = {
    "gqa": GqaAttention,
    "mlp": SwigluMlp,
    "moe": MoeMlp,
    "linear": LinearSubblock,
    "no_op": NoOpSubblock,
}


def make_subblock(variant: Variant, config: ParentConfig) -> SubblockModule:
    """The module of a variant, with uninitialised weights on torch's default device."""
    return _BUILDERS[variant.kind](variant, config)


__all__ = ["SubblockModule", "make_subblock"]
