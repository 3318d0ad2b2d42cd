"""Parameter and KV-cache counts of subblocks and of whole architectures, in closed form."""

from __future__ import annotations

import math

from puzzle_search.arch.config import ParentConfig
from puzzle_search.arch.moe import Moe
from puzzle_search.arch.spec import ArchitectureSpec
from puzzle_search.arch.variants import Gqa, Mlp, Variant


def subblock_parameters(variant: Variant, config: ParentConfig) -> int:
    """Parameters of one subblock with the RMSNorm in front of it; 0 for a no-op."""
    shapes = variant.tensors(config)
    norm = config.hidden_size if shapes else 0
    return sum(math.prod(shape) for shape in shapes.values()) + norm


def embedding_parameters(config: ParentConfig) -> int:
    """Parameters outside the blocks: embedding, output head unless tied, final RMSNorm."""
    tables = 1 if config.tie_embeddings else 2
    return tables * config.vocab_size * config.hidden_size + config.hidden_size


def architecture_parameters(spec: ArchitectureSpec, config: ParentConfig) -> int:
    """All parameters of an architecture."""
    blocks = sum(
        subblock_parameters(variant, config)
        for block in spec.blocks
        for variant in (block.attention_variant, block.ffn_variant)
    )
    return blocks + embedding_parameters(config)


def kv_values_per_token(variant: Variant, config: ParentConfig) -> int:
    """Numbers (not bytes) that one token leaves in the KV cache of this subblock."""
    return 2 * variant.kv_heads * config.head_dim if isinstance(variant, Gqa) else 0


def kept_tokens(variant: Variant, config: ParentConfig, tokens: int) -> int:
    """Tokens of a sequence of ``tokens`` whose keys and values are kept: those in the window."""
    if not isinstance(variant, Gqa):
        return 0
    window = variant.window(config)
    return tokens if window is None else min(tokens, window)


def mean_kv_values_per_token(spec: ArchitectureSpec, config: ParentConfig, tokens: int) -> int:
    """Numbers in the KV cache of a sequence of ``tokens``, by its tokens, rounded up.

    Without windows that is what every token leaves there.
    """
    kept = sum(
        kv_values_per_token(variant, config) * kept_tokens(variant, config, tokens)
        for variant in (block.attention_variant for block in spec.blocks)
    )
    return -(-kept // tokens)


def ffn_channels(variant: Variant, config: ParentConfig) -> int:
    """Intermediate activations of one token in an FFN, in all experts that it passes; else 0."""
    if isinstance(variant, Moe):
        return variant.top_k_in(config) * variant.width_in(config)
    return variant.intermediate_size if isinstance(variant, Mlp) else 0


def routed_copies(variant: Variant, config: ParentConfig) -> int:
    """How often a token's hidden state is copied to experts; 0 of other variants."""
    return variant.top_k_in(config) if isinstance(variant, Moe) else 0
