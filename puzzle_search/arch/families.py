"""What each model type fixes where its ``config.json`` does not say it: one row a family.

A family is a Llama-like decoder that differs in what stands here. What its checkpoints store under
other names, or side by side in one tensor, is read as Llama's tensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Family:
    """Fixed traits and defaults of a model type.

    Attributes:
        qkv_bias: of the attention's entry; None where ``attention_bias`` decides.
        output_bias: of its output, likewise.
        mlp_bias: None where ``mlp_bias`` decides.
        defaults_kv_heads: whether a config without KV heads has as many as query heads.
        defaults_head_dim: whether one without ``head_dim`` has hidden size / query heads.
        rms_norm_eps: where the config has none.
        tie_embeddings: likewise.
        attention_bias: where ``attention_bias`` is not given.
        window: ``none``: all attention is full; ``own``: ``sliding_window`` is that of every layer;
            ``layered``: ``layer_types`` gives some layers one, by default every other from the
            first; ``optional``: it does if ``use_sliding_window`` says so.
        default_window: where a config does not name its own.
        qk_norm: whether queries and keys are normed, by head or over all heads together.
        norm_after: whether a subblock's norm is of its output, before the residual add.
        skips_rope: whether ``no_rope_layers`` leaves layers without rotary positions.
        multipliers: whether four factors scale embeddings, attention, residuals and logits.
        sinks: whether each query head has a score of its own for attending to nothing.
        width_key: where the width of the FFN, or of an expert, stands.
        has_experts: whether FFNs are mixtures of experts.
        renormalised: of their gates; False where ``norm_topk_prob`` decides.
        expert_bias: whether router and experts have biases.
        clamped_swiglu: whether experts clamp both halves of their SwiGLU and add one to the second.
        stacked_experts: whether checkpoints store those of a layer in one tensor, gate and up by
            turns, beside a ``router``.
        stored_norms: names of the norms of attention and of FFN in checkpoints.
        fused: what checkpoints store as one tensor, in the order of its rows.
    """

    qkv_bias: bool | None = None
    output_bias: bool | None = None
    mlp_bias: bool | None = False
    attention_bias: bool = False
    defaults_kv_heads: bool = False
    defaults_head_dim: bool = True
    rms_norm_eps: float = 1e-6
    tie_embeddings: bool = False
    window: Literal["none", "own", "layered", "optional"] = "none"
    default_window: int | None = None
    qk_norm: Literal["head", "all"] | None = None
    norm_after: bool = False
    skips_rope: bool = False
    multipliers: bool = False
    sinks: bool = False
    width_key: str = "intermediate_size"
    has_experts: bool = False
    renormalised: bool = False
    expert_bias: bool = False
    clamped_swiglu: bool = False
    stacked_experts: bool = False
    stored_norms: tuple[str, str] = ("input_layernorm", "post_attention_layernorm")
    fused: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


FAMILIES: dict[str, Family] = {
    "llama": Family(mlp_bias=None, defaults_kv_heads=True),
    "mistral": Family(qkv_bias=False, output_bias=False, window="own", default_window=4096),
    "mixtral": Family(
        qkv_bias=False,
        output_bias=False,
        window="own",
        rms_norm_eps=1e-5,
        has_experts=True,
        renormalised=True,
    ),
    "qwen2": Family(qkv_bias=True, output_bias=False, window="optional"),
    "qwen3": Family(qk_norm="head", defaults_head_dim=False, window="optional"),
    "qwen3_moe": Family(
        qk_norm="head", window="optional", has_experts=True, width_key="moe_intermediate_size"
    ),
    "gpt_oss": Family(
        attention_bias=True,
        window="layered",
        rms_norm_eps=1e-5,
        sinks=True,
        has_experts=True,
        renormalised=True,
        expert_bias=True,
        clamped_swiglu=True,
        stacked_experts=True,
    ),
    "smollm3": Family(mlp_bias=None, tie_embeddings=True, window="optional", skips_rope=True),
    "granite": Family(mlp_bias=None, defaults_kv_heads=True, multipliers=True),
    "olmo2": Family(
        defaults_kv_heads=True,
        rms_norm_eps=1e-5,
        qk_norm="all",
        norm_after=True,
        stored_norms=("post_attention_layernorm", "post_feedforward_layernorm"),
    ),
    "phi3": Family(
        qkv_bias=False,
        output_bias=False,
        defaults_kv_heads=True,
        rms_norm_eps=1e-5,
        window="own",
        fused={
            "qkv_proj": ("q_proj", "k_proj", "v_proj"),
            "gate_up_proj": ("gate_proj", "up_proj"),
        },
    ),
}


@dataclass(frozen=True, kw_only=True)
class Scales:
    """Factors on what Llama leaves as it is.

    Attributes:
        embedding: on the rows of the embedding table.
        query: on queries, before attention divides by the root of the head size.
        residual: on what a subblock adds to the residual stream.
        logits: on logits.
    """

    embedding: float = 1.0
    query: float = 1.0
    residual: float = 1.0
    logits: float = 1.0
