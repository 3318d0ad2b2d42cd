"""The ``config.json`` that a GGUF file's metadata and tensors stand for."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from puzzle_search.errors import InputError
from puzzle_search.imports.gguf.source import GgufSource

# Architecture of the file: class and model_type of transformers. Mistral's older models are
# converted as `llama`; its newer ones differ from `mistral3` only in keys that are refused below.
_FAMILIES = {
    "llama": ("LlamaForCausalLM", "llama"),
    "mistral3": ("MistralForCausalLM", "mistral"),
    "qwen2": ("Qwen2ForCausalLM", "qwen2"),
    "qwen3": ("Qwen3ForCausalLM", "qwen3"),
}
EMBEDDING, HEAD, ROPE_DIVISORS = "token_embd.weight", "output.weight", "rope_freqs.weight"

_USED = {
    "attention.causal",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.layer_norm_rms_epsilon",
    "attention.value_length",
    "block_count",
    "context_length",
    "embedding_length",
    "feed_forward_length",
    "rope.dimension_count",
    "rope.freq_base",
    "rope.scaling.factor",
    "rope.scaling.original_context_length",
    "rope.scaling.type",
    "vocab_size",
}
# How the file was made or trained; nothing that is computed depends on them.
_WITHOUT_EFFECT = {"rope.scaling.finetuned", "tensor_data_layout"}

# Llama 3.1, 3.2 and 3.3: what GGUF files keep of it are the divisors alone.
_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
_LLAMA3_CONTEXT = 8192


def model_config(source: GgufSource, *, dtype: str) -> dict[str, Any]:
    """The config of the model in a file, without token ids.

    Args:
        source: the file.
        dtype: torch's name of what the weights are stored in.

    Raises:
        InputError: the architecture is another, or a key or tensor says what cannot be kept.
    """
    arch = source.architecture
    if arch not in _FAMILIES:
        raise source.refuse(
            f"architecture {arch!r} is not supported",
            remedy=f"use a model of architecture {', '.join(_FAMILIES)}",
        )
    architecture, model_type = _FAMILIES[arch]
    known = {f"{arch}.{key}" for key in _USED | _WITHOUT_EFFECT}
    if unknown := sorted(source.keys(f"{arch}.") - known):
        raise source.refuse(
            f"{', '.join(unknown)}: what the model computes with this is not supported",
            remedy="use a dense Llama-like model",
        )
    if not source.get(f"{arch}.attention.causal", bool, True):
        raise source.refuse(
            "attention is not causal", remedy="use a model that generates text, token by token"
        )

    hidden = source.get(f"{arch}.embedding_length", int)
    heads = source.get(f"{arch}.attention.head_count", int)
    if EMBEDDING not in source.tensors:
        raise source.refuse(f"tensor {EMBEDDING} is missing", remedy="use a file of a whole model")
    config: dict[str, Any] = {
        "architectures": [architecture],
        "model_type": model_type,
        "hidden_act": "silu",
        "hidden_size": hidden,
        "intermediate_size": source.get(f"{arch}.feed_forward_length", int),
        "num_hidden_layers": source.get(f"{arch}.block_count", int),
        "num_attention_heads": heads,
        "num_key_value_heads": source.get(f"{arch}.attention.head_count_kv", int, heads),
        "head_dim": _head_dim(source, hidden // max(heads, 1)),
        "max_position_embeddings": source.get(f"{arch}.context_length", int),
        "rms_norm_eps": source.get(f"{arch}.attention.layer_norm_rms_epsilon", float),
        # Rows of the table count: vocabularies are padded.
        "vocab_size": source.tensors[EMBEDDING].shape[0],
        "tie_word_embeddings": HEAD not in source.tensors,
        "torch_dtype": dtype,
    }
    if model_type in ("llama", "qwen3"):
        config["attention_bias"] = "blk.0.attn_q.bias" in source.tensors
    if model_type == "llama":
        config["mlp_bias"] = "blk.0.ffn_gate.bias" in source.tensors
    if model_type == "mistral":
        config["sliding_window"] = None
    theta = source.get(f"{arch}.rope.freq_base", float, 10000.0)
    scaling = _rope_scaling(source, theta, config["head_dim"])
    return config | {"rope_theta": theta, "rope_scaling": scaling}


def _head_dim(source: GgufSource, default: int) -> int:
    arch = source.architecture
    size = source.get(f"{arch}.attention.key_length", int, default)
    for key in ("attention.value_length", "rope.dimension_count"):
        if (other := source.get(f"{arch}.{key}", int, size)) != size:
            raise source.refuse(
                f"{arch}.{key} is {other} where heads have {size} dimensions",
                remedy="use a model whose heads are of one size and rotated as a whole",
            )
    return size


def _rope_scaling(source: GgufSource, theta: float, head_dim: int) -> dict[str, Any] | None:
    key = f"{source.architecture}.rope.scaling"
    kind = source.get(f"{key}.type", str, "none")
    original = source.get(f"{key}.original_context_length", int, 0)
    if kind not in ("none", "linear", "yarn"):
        raise source.refuse(
            f"{key}.type {kind!r} is not supported", remedy="use a model without it"
        )
    divisors = source.tensors.get(ROPE_DIVISORS)
    if divisors is None:
        if kind == "none":
            return None
        scaling = {"rope_type": kind, "factor": source.get(f"{key}.factor", float)}
        known = {"original_max_position_embeddings": original} if original else {}
        return scaling | (known if kind == "yarn" else {})
    found = divisors.values(divisors.data).astype(np.float64)
    if kind != "none" or found.shape != (head_dim // 2,):
        raise _unknown_divisors(source)
    if np.all(found == 1):
        return None
    return _llama3(source, found, theta, original or _LLAMA3_CONTEXT)


def _llama3(source: GgufSource, divisors: Any, theta: float, original: int) -> dict[str, Any]:
    """The rope settings of Llama 3.1 and later, checked against the divisors that they give."""
    factor = float(str(np.float32(divisors.max())))
    low, high = _LLAMA3["low_freq_factor"], _LLAMA3["high_freq_factor"]
    count = len(divisors)
    # Rotations over the original context: many are kept, few are slowed down, mixed in between.
    turns = original / (2 * math.pi) * theta ** (-np.arange(count) / count)
    share = np.clip((turns - low) / (high - low), 0, 1)
    expected = 1 / ((1 - share) / factor + share)
    if not np.allclose(divisors, expected, rtol=1e-4):
        raise _unknown_divisors(source)
    return {
        "rope_type": "llama3",
        "factor": factor,
        **_LLAMA3,
        "original_max_position_embeddings": original,
    }


def _unknown_divisors(source: GgufSource) -> InputError:
    return source.refuse(
        f"{ROPE_DIVISORS} is not of Llama 3.1's rope scaling, and no other is known by it",
        remedy="use the model's own Hugging Face folder",
    )
