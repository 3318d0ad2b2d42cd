"""Checkpoint names of a subblock's tensors: Llama's, and DeciLM's for the linear variants."""

from __future__ import annotations

from collections.abc import Iterator

from puzzle_search.arch import ArchitectureSpec, ParentConfig, Subblock, Variant
from puzzle_search.arch.variants import Shape
from puzzle_search.checkpoint.experts import StoredPart, is_of_experts, stored_experts

_NORM = {"attention": "input_layernorm", "ffn": "post_attention_layernorm"}
_MODULE = {"attention": "self_attn", "ffn": "mlp"}
_LINEAR = {"attention": "linear_attn", "ffn": "linear_mlp"}

EMBEDDING = "model.embed_tokens.weight"
FINAL_NORM = "model.norm.weight"
HEAD = "lm_head.weight"


def subblock_names(subblock: Subblock, block: int) -> dict[str, str]:
    """Map prefix of local names to prefix of checkpoint names for one block's subblock."""
    layer = f"model.layers.{block}"
    module = f"{layer}.{_MODULE[subblock]}"
    return {
        "norm.": f"{layer}.{_NORM[subblock]}.",
        "linear.": f"{module}.{_LINEAR[subblock]}.",
        "": f"{module}.",
    }


def checkpoint_name(subblock: Subblock, block: int, local: str) -> str:
    """The checkpoint name of a subblock's tensor, e.g. ``model.layers.3.mlp.up_proj.weight``."""
    for prefix, full in subblock_names(subblock, block).items():
        if local.startswith(prefix):
            return full + local.removeprefix(prefix)
    raise AssertionError(local)


def stored_parts(
    subblock: Subblock, block: int, local: str, shape: Shape, config: ParentConfig
) -> Iterator[StoredPart]:
    """The tensors of a checkpoint that hold one of a subblock's: itself, or a layer's experts."""
    if is_of_experts(local, config):
        yield from stored_experts(f"model.layers.{block}", local, shape, config)
    else:
        yield StoredPart(checkpoint_name(subblock, block, local), shape, ())


def subblock_shapes(variant: Variant, config: ParentConfig) -> dict[str, Shape]:
    """Shapes of a subblock's tensors by local name, its norm among them; empty for a no-op."""
    shapes = variant.tensors(config)
    return {"norm.weight": (config.hidden_size,)} | shapes if shapes else {}


def outside_names(config: ParentConfig) -> dict[str, Shape]:
    """Checkpoint names and shapes of what stands outside the blocks."""
    table = (config.vocab_size, config.hidden_size)
    names: dict[str, Shape] = {EMBEDDING: table, FINAL_NORM: (config.hidden_size,)}
    return names if config.tie_embeddings else names | {HEAD: table}


def all_names(config: ParentConfig, spec: ArchitectureSpec) -> dict[str, Shape]:
    """Checkpoint names and shapes of every tensor of a model."""
    names = outside_names(config)
    for index, block in enumerate(spec.blocks):
        own: tuple[tuple[Subblock, Variant], ...] = (
            ("attention", block.attention_variant),
            ("ffn", block.ffn_variant),
        )
        for subblock, variant in own:
            for local, shape in subblock_shapes(variant, config).items():
                parts = stored_parts(subblock, index, local, shape, config)
                names |= {part.name: part.shape for part in parts}
    return names
