"""Pico parents, made and saved by transformers: the reference that models are held against."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "intermediate_size": 512,
    "vocab_size": 96,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "tie_word_embeddings": False,
}


def draw(shape: tuple[int, ...], name: str, generator: torch.Generator) -> torch.Tensor:
    """Random weights of which every part matters: norms around 1, biases well away from 0."""
    values = torch.randn(shape, generator=generator)
    if "norm" in name:
        return 1 + 0.3 * values
    if "embed" in name:
        return values
    return 0.3 * values if len(shape) == 1 else values * 1.5 / shape[-1] ** 0.5


def reference(*, seed: int = 0, **changes: Any) -> Any:
    """A transformers model with random weights, in fp32."""
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(**(LLAMA | changes)), dtype=torch.float32
    ).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.copy_(draw(tuple(weight.shape), name, generator))
    return model


def write_parent(folder: Path, *, seed: int = 0, **changes: Any) -> Any:
    """Save such a model as a checkpoint folder; return the model."""
    model = reference(seed=seed, **changes)
    model.save_pretrained(folder)
    return model


def write_tokenizer(folder: Path) -> dict[str, bytes]:
    """Tokenizer files as a parent's folder has them, by name; their content does not matter."""
    files = {
        "tokenizer.json": json.dumps({"version": "1.0"}).encode(),
        "tokenizer_config.json": b'{"eos_token": "</s>"}\n',
        "special_tokens_map.json": b"{}\n",
        "chat_template.jinja": "{{ messages }} \u2603".encode(),
        "vocab.json": b"{}",
        "merges.txt": b"#version: 0.2\n",
        "tokenizer.model": bytes(range(256)),
    }
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return files


def random_ids(*shape: int, seed: int = 0, vocabulary: int = 96) -> torch.Tensor:
    """Token ids without the special ones."""
    return torch.randint(2, vocabulary, shape, generator=torch.Generator().manual_seed(seed))
