"""The nouns: parent configuration, subblock variants, search space, architecture spec. No torch."""

from puzzle_search.arch.config import ParentConfig
from puzzle_search.arch.experts import Experts
from puzzle_search.arch.moe import Moe
from puzzle_search.arch.parameters import (
    architecture_parameters,
    embedding_parameters,
    ffn_channels,
    kept_tokens,
    kv_values_per_token,
    mean_kv_values_per_token,
    routed_copies,
    subblock_parameters,
)
from puzzle_search.arch.space import Replacement, SearchSpace, canonical
from puzzle_search.arch.spec import ArchitectureSpec, BlockChoice
from puzzle_search.arch.variants import Gqa, Linear, Mlp, NoOp, Subblock, Variant, parse_variant
from puzzle_search.arch.weight_types import shape_of

__all__ = [
    "ArchitectureSpec",
    "BlockChoice",
    "Experts",
    "Gqa",
    "Linear",
    "Mlp",
    "Moe",
    "NoOp",
    "ParentConfig",
    "Replacement",
    "SearchSpace",
    "Subblock",
    "Variant",
    "architecture_parameters",
    "canonical",
    "embedding_parameters",
    "ffn_channels",
    "kept_tokens",
    "kv_values_per_token",
    "mean_kv_values_per_token",
    "parse_variant",
    "routed_copies",
    "shape_of",
    "subblock_parameters",
]
