"""The model that vLLM runs a child with, in vLLM's own layers; loaded by its plugin.

Every block computes what it has and nothing else. Tensor parallel, quantised as the folder says;
not pipeline parallel, and without LoRA.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from vllm.compilation.decorators import support_torch_compile
from vllm.config import VllmConfig
from vllm.distributed import get_tensor_model_parallel_world_size
from vllm.model_executor.layers.activation import SiluAndMul
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.layers.layernorm import RMSNorm
from vllm.model_executor.layers.linear import (
    MergedColumnParallelLinear,
    QKVParallelLinear,
    ReplicatedLinear,
    RowParallelLinear,
)
from vllm.model_executor.layers.logits_processor import LogitsProcessor
from vllm.model_executor.layers.rotary_embedding import get_rope
from vllm.model_executor.layers.vocab_parallel_embedding import (
    ParallelLMHead,
    VocabParallelEmbedding,
)
from vllm.model_executor.model_loader.weight_utils import default_weight_loader
from vllm.sequence import IntermediateTensors

from puzzle_search.arch import BlockChoice, Gqa, Linear, Mlp, ParentConfig
from puzzle_search.checkpoint.child import both_rope_forms, parse_model_config
from puzzle_search.checkpoint.names import HEAD
from puzzle_search.solve.problem.portability import check_exportable

# Checkpoint's part, the layer that holds it beside others, and its place there.
_FUSED: tuple[tuple[str, str, str | int], ...] = (
    (".q_proj.", ".qkv_proj.", "q"),
    (".k_proj.", ".qkv_proj.", "k"),
    (".v_proj.", ".qkv_proj.", "v"),
    (".gate_proj.", ".gate_up_proj.", 0),
    (".up_proj.", ".gate_up_proj.", 1),
)


class _Attention(nn.Module):
    def __init__(
        self, variant: Gqa, config: ParentConfig, vllm_config: VllmConfig, prefix: str
    ) -> None:
        super().__init__()
        quant, size, devices = (
            vllm_config.quant_config,
            config.head_dim,
            get_tensor_model_parallel_world_size(),
        )
        heads, kv_heads = config.num_heads // devices, max(1, variant.kv_heads // devices)
        self.head_dim = size
        self.sizes = [heads * size, kv_heads * size, kv_heads * size]
        self.qkv_proj = QKVParallelLinear(
            config.hidden_size,
            size,
            config.num_heads,
            variant.kv_heads,
            bias=config.qkv_bias,
            quant_config=quant,
            prefix=f"{prefix}.qkv_proj",
        )
        self.o_proj = RowParallelLinear(
            config.num_heads * size,
            config.hidden_size,
            bias=config.output_bias,
            quant_config=quant,
            prefix=f"{prefix}.o_proj",
        )
        self.q_norm = self.k_norm = None
        if config.qk_norm:
            self.q_norm, self.k_norm = (RMSNorm(size, eps=config.rms_norm_eps) for _ in range(2))
        self.rotary_emb = get_rope(
            size,
            max_position=config.max_position_embeddings,
            rope_parameters=both_rope_forms(config.raw)["rope_parameters"],
        )
        self.attn = Attention(
            heads,
            size,
            size**-0.5,
            num_kv_heads=kv_heads,
            cache_config=vllm_config.cache_config,
            quant_config=quant,
            per_layer_sliding_window=variant.window(config),
            prefix=f"{prefix}.attn",
        )

    def _normed(self, x_TE: torch.Tensor, norm: nn.Module | None) -> torch.Tensor:
        if norm is None:
            return x_TE
        out_TE: torch.Tensor = norm(x_TE.view(len(x_TE), -1, self.head_dim)).view(x_TE.shape)
        return out_TE

    def forward(self, positions: torch.Tensor, x_TD: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv_proj(x_TD)[0].split(self.sizes, dim=-1)
        q, k = self._normed(q, self.q_norm), self._normed(k, self.k_norm)
        out_TD: torch.Tensor = self.o_proj(self.attn(*self.rotary_emb(positions, q, k), v))[0]
        return out_TD


class _Matrix(nn.Module):
    def __init__(self, name: str, config: ParentConfig, quant: Any, prefix: str) -> None:
        super().__init__()
        size = config.hidden_size
        matrix = ReplicatedLinear(
            size, size, bias=False, quant_config=quant, prefix=f"{prefix}.{name}"
        )
        self.name = name
        self.add_module(name, matrix)

    def forward(self, positions: torch.Tensor, x_TD: torch.Tensor) -> torch.Tensor:
        out_TD: torch.Tensor = getattr(self, self.name)(x_TD)[0]
        return out_TD


class _Mlp(nn.Module):
    def __init__(self, variant: Mlp, config: ParentConfig, quant: Any, prefix: str) -> None:
        super().__init__()
        hidden, width = config.hidden_size, variant.intermediate_size
        self.gate_up_proj = MergedColumnParallelLinear(
            hidden,
            [width, width],
            bias=config.mlp_bias,
            quant_config=quant,
            prefix=f"{prefix}.gate_up_proj",
        )
        self.down_proj = RowParallelLinear(
            width, hidden, bias=config.mlp_bias, quant_config=quant, prefix=f"{prefix}.down_proj"
        )
        self.act = SiluAndMul()

    def forward(self, positions: torch.Tensor, x_TD: torch.Tensor) -> torch.Tensor:
        out_TD: torch.Tensor = self.down_proj(self.act(self.gate_up_proj(x_TD)[0]))[0]
        return out_TD


class _Block(nn.Module):
    """The subblocks that are there, each with its norm, by the names of checkpoints."""

    def __init__(
        self, choice: BlockChoice, config: ParentConfig, vllm_config: VllmConfig, prefix: str
    ) -> None:
        super().__init__()
        quant, eps = vllm_config.quant_config, config.rms_norm_eps
        attention, ffn = choice.attention_variant, choice.ffn_variant
        self.self_attn: nn.Module | None = None
        self.mlp: nn.Module | None = None
        place = f"{prefix}.self_attn"
        if isinstance(attention, Gqa):
            self.self_attn = _Attention(attention, config, vllm_config, place)
        elif isinstance(attention, Linear):
            self.self_attn = _Matrix("linear_attn", config, quant, place)
        if isinstance(ffn, Mlp):
            self.mlp = _Mlp(ffn, config, quant, f"{prefix}.mlp")
        elif isinstance(ffn, Linear):
            self.mlp = _Matrix("linear_mlp", config, quant, f"{prefix}.mlp")
        if self.self_attn is not None:
            self.input_layernorm = RMSNorm(config.hidden_size, eps=eps)
        if self.mlp is not None:
            self.post_attention_layernorm = RMSNorm(config.hidden_size, eps=eps)

    def forward(
        self, positions: torch.Tensor, x_TD: torch.Tensor, residual_TD: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        if self.self_attn is not None:
            x_TD, residual_TD = _added(self.input_layernorm, x_TD, residual_TD)
            x_TD = self.self_attn(positions, x_TD)
        if self.mlp is not None:
            x_TD, residual_TD = _added(self.post_attention_layernorm, x_TD, residual_TD)
            x_TD = self.mlp(positions, x_TD)
        return x_TD, residual_TD


def _added(
    norm: nn.Module, x_TD: torch.Tensor, residual_TD: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The normed sum with the residual stream, and that sum: one kernel of vLLM's norm."""
    if residual_TD is None:
        return norm(x_TD), x_TD
    normed_TD, sum_TD = norm(x_TD, residual_TD)
    return normed_TD, sum_TD


@support_torch_compile(dynamic_arg_dims={"input_ids": 0, "positions": 0, "inputs_embeds": 0})
class _Decoder(nn.Module):
    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        given = vllm_config.model_config.hf_config.to_dict()
        config, spec = parse_model_config(given, Path(vllm_config.model_config.model))
        check_exportable("vllm-plugin", spec, config)
        self.embed_tokens = VocabParallelEmbedding(
            config.vocab_size, config.hidden_size, quant_config=vllm_config.quant_config
        )
        self.layers = nn.ModuleList(
            _Block(choice, config, vllm_config, f"{prefix}.layers.{number}")
            for number, choice in enumerate(spec.blocks)
        )
        self.norm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(
        self,
        input_ids: torch.Tensor | None,
        positions: torch.Tensor,
        intermediate_tensors: IntermediateTensors | None = None,
        inputs_embeds: torch.Tensor | None = None,
    ) -> torch.Tensor:
        x_TD = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        residual_TD: torch.Tensor | None = None
        for layer in self.layers:
            x_TD, residual_TD = layer(positions, x_TD, residual_TD)
        return _added(self.norm, x_TD, residual_TD)[0]


class PuzzleSearchForCausalLM(nn.Module):
    """A child with its output head, as vLLM's model registry wants it."""

    packed_modules_mapping = {  # noqa: RUF012, vLLM's own form
        "qkv_proj": ["q_proj", "k_proj", "v_proj"],
        "gate_up_proj": ["gate_proj", "up_proj"],
    }

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        config = vllm_config.model_config.hf_config
        self.model = _Decoder(vllm_config=vllm_config, prefix=f"{prefix}model")
        self.lm_head = ParallelLMHead(
            config.vocab_size,
            config.hidden_size,
            quant_config=vllm_config.quant_config,
            prefix=f"{prefix}lm_head",
        )
        self.tied = config.tie_word_embeddings
        if self.tied:
            self.lm_head = self.lm_head.tie_weights(self.model.embed_tokens)
        self.logits_processor = LogitsProcessor(config.vocab_size)

    def embed_input_ids(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Rows of the embedding table."""
        rows_TD: torch.Tensor = self.model.embed_tokens(input_ids)
        return rows_TD

    def forward(
        self,
        input_ids: torch.Tensor | None,
        positions: torch.Tensor,
        intermediate_tensors: IntermediateTensors | None = None,
        inputs_embeds: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Hidden states (T, D) of all new tokens of a step."""
        hidden_TD: torch.Tensor = self.model(
            input_ids, positions, intermediate_tensors, inputs_embeds
        )
        return hidden_TD

    def compute_logits(self, hidden_states: torch.Tensor) -> torch.Tensor | None:
        """Logits of the sequences that get a token."""
        logits: torch.Tensor | None = self.logits_processor(self.lm_head, hidden_states)
        return logits

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        """Take the checkpoint's tensors; what one of them went into is returned."""
        parameters, loaded = dict(self.named_parameters()), set()
        for name, tensor in weights:
            if name == HEAD and self.tied:
                continue
            place: tuple[str | int, ...] = ()
            for part, fused, shard in _FUSED:
                if part in name:
                    name, place = name.replace(part, fused), (shard,)
            parameter = parameters[name]
            loader = getattr(parameter, "weight_loader", default_weight_loader)
            loader(parameter, tensor, *place)
            loaded.add(name)
        return loaded
