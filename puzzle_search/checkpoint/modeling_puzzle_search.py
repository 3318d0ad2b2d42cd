"""The model class of a child for transformers, copied into its folder (``trust_remote_code``).

A block's attention is the parent's own class with that block's number of KV heads, so that q/k
norms, biases and windows are those of the parent; the rest is what all these parents have in
common. This file runs where this package need not be installed, so it imports nothing of it.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from transformers import CONFIG_MAPPING, PreTrainedConfig
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.models.llama.modeling_llama import (
    LlamaAttention,
    LlamaMLP,
    LlamaRMSNorm,
)
from transformers.models.mistral.modeling_mistral import (
    MistralAttention,
    MistralForCausalLM,
    MistralModel,
    MistralRMSNorm,
    MistralRotaryEmbedding,
)
from transformers.models.qwen2.modeling_qwen2 import Qwen2Attention
from transformers.models.qwen3.modeling_qwen3 import Qwen3Attention

ATTENTION: dict[str, Any] = {
    "llama": LlamaAttention,
    "mistral": MistralAttention,
    "qwen2": Qwen2Attention,
    "qwen3": Qwen3Attention,
}
"""Attention class by the parent's type."""

NEVER_SPLIT = ["PuzzleSearchBlock"]
"""Modules that stay on one device."""


class PuzzleSearchConfig(PreTrainedConfig):
    """A decoder whose blocks differ.

    Args:
        block_configs: one entry a block: ``attention`` with ``n_heads_in_group``, ``ffn`` with
            ``intermediate_size``; either may be ``no_op`` or ``replace_with_linear``.
        puzzle_search: has the parent's own ``parent_config``.
    """

    model_type = "puzzle-search"
    keys_to_ignore_at_inference = ("past_key_values",)

    def __init__(
        self,
        block_configs: list[dict[str, Any]] | None = None,
        puzzle_search: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        self.block_configs = block_configs or []
        self.puzzle_search = puzzle_search or {}
        kwargs.setdefault("sliding_window", None)
        super().__init__(**kwargs)

    def parent(self) -> Any:
        """The parent's configuration, as its own class reads it."""
        given = self.puzzle_search["parent_config"]
        return CONFIG_MAPPING[given["model_type"]](**given)


class LinearAttn(nn.Module):
    """A matrix in place of attention: keeps nothing in the cache.

    Not named attention in full: by that transformers would take this file for one whose attention
    cannot be exchanged.
    """

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.linear_attn = nn.Linear(hidden_size, hidden_size, bias=False)

    def forward(self, hidden_states: torch.Tensor, **kwargs: Any) -> tuple[torch.Tensor, None]:
        """Apply the matrix; there are no attention weights."""
        return self.linear_attn(hidden_states), None


class LinearMlp(nn.Module):
    """A matrix in place of an FFN."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.linear_mlp = nn.Linear(hidden_size, hidden_size, bias=False)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Apply the matrix."""
        out: torch.Tensor = self.linear_mlp(hidden_states)
        return out


class PuzzleSearchBlock(GradientCheckpointingLayer):
    """The subblocks of one block that are there.

    Args:
        config: of the child.
        parent: of its parent.
        entry: of ``block_configs``.
        place: how many blocks before this one keep keys and values.
    """

    def __init__(
        self, config: PuzzleSearchConfig, parent: Any, entry: dict[str, Any], place: int
    ) -> None:
        super().__init__()
        own = copy.copy(parent)
        attention, ffn = entry["attention"], entry["ffn"]
        self.self_attn: nn.Module | None = None
        self.mlp: nn.Module | None = None
        if keeps_cache(entry):
            own.num_key_value_heads = parent.num_attention_heads // attention["n_heads_in_group"]
            # Numbered among those that keep something, so that the cache's first layer tells the
            # length of what it holds.
            self.self_attn = ATTENTION[parent.model_type](own, place)
            self.self_attn.config = config  # whose attn_implementation may be set later
        elif attention["replace_with_linear"]:
            self.self_attn = LinearAttn(parent.hidden_size)
        if ffn["replace_with_linear"]:
            self.mlp = LinearMlp(parent.hidden_size)
        elif not ffn["no_op"]:
            own.intermediate_size = ffn["intermediate_size"]
            own.mlp_bias = getattr(parent, "mlp_bias", False)
            self.mlp = LlamaMLP(own)
        if self.self_attn is not None:
            self.input_layernorm = LlamaRMSNorm(parent.hidden_size, eps=parent.rms_norm_eps)
        if self.mlp is not None:
            self.post_attention_layernorm = LlamaRMSNorm(
                parent.hidden_size, eps=parent.rms_norm_eps
            )

    def forward(self, hidden_states: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        """Hidden states after the block."""
        if self.self_attn is not None:
            normed = self.input_layernorm(hidden_states)
            hidden_states = hidden_states + self.self_attn(hidden_states=normed, **kwargs)[0]
        if self.mlp is not None:
            normed = self.post_attention_layernorm(hidden_states)
            hidden_states = hidden_states + self.mlp(normed)
        return hidden_states


def keeps_cache(entry: dict[str, Any]) -> bool:
    """Whether a block has attention."""
    attention = entry["attention"]
    return not attention["no_op"] and not attention["replace_with_linear"]


class PuzzleSearchModel(MistralModel):
    """Embedding, blocks and final norm; Mistral's model is Llama's with a window, if any."""

    config_class = PuzzleSearchConfig
    _no_split_modules = NEVER_SPLIT
    _can_record_outputs = {  # noqa: RUF012, transformers' own form
        "hidden_states": PuzzleSearchBlock,
        "attentions": list(ATTENTION.values()),
    }
    # Engines that put attention of their own into models expect all layers alike.
    _supports_attention_backend = False

    def __init__(self, config: PuzzleSearchConfig) -> None:
        super(MistralModel, self).__init__(config)
        parent = config.parent()
        self.padding_idx = config.pad_token_id
        self.vocab_size = parent.vocab_size
        self.embed_tokens = nn.Embedding(parent.vocab_size, parent.hidden_size, self.padding_idx)
        places = [keeps_cache(entry) for entry in config.block_configs]
        self.layers = nn.ModuleList(
            PuzzleSearchBlock(config, parent, entry, sum(places[:number]))
            for number, entry in enumerate(config.block_configs)
        )
        self.norm = MistralRMSNorm(parent.hidden_size, eps=parent.rms_norm_eps)
        self.rotary_emb = MistralRotaryEmbedding(parent)
        self.gradient_checkpointing = False
        self.post_init()


class PuzzleSearchForCausalLM(MistralForCausalLM):
    """A child with its output head."""

    config_class = PuzzleSearchConfig
    _no_split_modules = NEVER_SPLIT
    _supports_attention_backend = False

    def __init__(self, config: PuzzleSearchConfig) -> None:
        super(MistralForCausalLM, self).__init__(config)
        self.model = PuzzleSearchModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()
