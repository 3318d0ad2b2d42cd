"""Logits and greedy text against transformers' own models."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from transformers import GenerationConfig

from puzzle_search.arch import ArchitectureSpec
from puzzle_search.checkpoint import load_decoder
from puzzle_search.errors import InputError
from puzzle_search.model import HeterogeneousDecoder, generate
from tests.model.pico import random_ids, reference, write_parent

TOLERANCE = 1e-4
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN_ROPE = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 32,
}
LINEAR_ROPE = {"rope_type": "linear", "rope_theta": 500.0, "factor": 4.0}
FEWER_KV = {"num_key_value_heads": 2}
MIXTRAL = FEWER_KV | {
    "model_type": "mixtral", "intermediate_size": 96, "num_local_experts": 6,
    "num_experts_per_tok": 2, "sliding_window": None,
}  # fmt: skip
QWEN3_MOE = FEWER_KV | {
    "model_type": "qwen3_moe", "head_dim": 24, "moe_intermediate_size": 48, "num_experts": 12,
    "num_experts_per_tok": 4, "norm_topk_prob": True,
}  # fmt: skip
GPT_OSS: dict[str, Any] = FEWER_KV | {
    "model_type": "gpt_oss", "head_dim": 24, "intermediate_size": 64, "num_local_experts": 6,
    "num_experts_per_tok": 2, "sliding_window": 11, "swiglu_limit": 1.5, "num_hidden_layers": 3,
    "rope_parameters": YARN_ROPE | {"truncate": False, "beta_fast": 32.0, "beta_slow": 1.0},
}  # fmt: skip

PARENTS: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama-gqa-3-layers": FEWER_KV | {"num_hidden_layers": 3},
    "llama-llama3-rope": FEWER_KV | {"rope_parameters": LLAMA3_ROPE},
    "llama-linear-rope": FEWER_KV | {"rope_parameters": LINEAR_ROPE},
    "llama-yarn-rope": FEWER_KV | {"rope_parameters": YARN_ROPE},
    "llama-biases": FEWER_KV | {"attention_bias": True, "mlp_bias": True},
    "llama-tied": {"tie_word_embeddings": True},
    "mistral": FEWER_KV | {"model_type": "mistral", "head_dim": 32, "sliding_window": None},
    "mistral-window": FEWER_KV | {"model_type": "mistral", "head_dim": 24, "sliding_window": 64},
    "mistral-passed-window": FEWER_KV | {"model_type": "mistral", "sliding_window": 11},
    "qwen2": FEWER_KV | {"model_type": "qwen2"},
    "qwen3": FEWER_KV | {"model_type": "qwen3", "head_dim": 24, "tie_word_embeddings": True},
    "qwen3-biases": FEWER_KV | {"model_type": "qwen3", "head_dim": 32, "attention_bias": True},
    "smollm3": FEWER_KV
    | {"model_type": "smollm3", "num_hidden_layers": 5, "no_rope_layers": [1, 0, 1, 1, 0]}
    | {"pad_token_id": 0},
    "smollm3-interval": FEWER_KV
    | {"model_type": "smollm3", "num_hidden_layers": 3, "no_rope_layer_interval": 2}
    | {"pad_token_id": 0, "tie_word_embeddings": True, "attention_bias": True},
    "granite": FEWER_KV
    | {"model_type": "granite", "embedding_multiplier": 6.0, "attention_multiplier": 0.1}
    | {"residual_multiplier": 0.4, "logits_scaling": 0.5, "tie_word_embeddings": True},
    "granite-biases": {"model_type": "granite", "attention_bias": True, "mlp_bias": True},
    "olmo2": FEWER_KV | {"model_type": "olmo2"},
    "olmo2-biases": {"model_type": "olmo2", "attention_bias": True},
    "phi3": FEWER_KV | {"model_type": "phi3", "pad_token_id": 0},
    "phi3-window": {"model_type": "phi3", "pad_token_id": 0, "sliding_window": 13},
    "mixtral": MIXTRAL,
    "gpt-oss": GPT_OSS,
    "gpt-oss-no-window": GPT_OSS
    | {"layer_types": ["full_attention"] * 3, "swiglu_alpha": 1.0, "num_experts_per_tok": 6},
    "qwen2-windows-above": FEWER_KV
    | {"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 9}
    | {"max_window_layers": 1},
    "qwen3-moe": QWEN3_MOE,
    "qwen3-moe-plain-gates": QWEN3_MOE | {"norm_topk_prob": False, "tie_word_embeddings": True},
}


@dataclass(frozen=True, kw_only=True)
class Pair:
    reference: Any
    decoder: HeterogeneousDecoder


@pytest.fixture(scope="module", params=PARENTS)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """One parent, as transformers runs it and as this package loads it."""
    folder = tmp_path_factory.mktemp(request.param)
    reference = write_parent(folder, **PARENTS[request.param])
    return Pair(reference=reference, decoder=load_decoder(folder))


@torch.no_grad()
def test_full_pass(pair: Pair) -> None:
    ids = random_ids(2, 40)
    expected = pair.reference(ids).logits
    assert expected.std() > 0.5  # else a wrong model would pass too
    torch.testing.assert_close(pair.decoder(ids), expected, atol=TOLERANCE, rtol=0)


@torch.no_grad()
def test_two_chunks_then_token_by_token(pair: Pair) -> None:
    ids = random_ids(2, 40, seed=1)
    expected = pair.reference(ids).logits
    cache = pair.decoder.new_cache(batch=2, max_length=40)
    parts = [pair.decoder(ids[:, :17], cache), pair.decoder(ids[:, 17:30], cache)]
    parts += [pair.decoder(ids[:, at : at + 1], cache) for at in range(30, 40)]
    assert cache.length == 40
    torch.testing.assert_close(torch.cat(parts, dim=1), expected, atol=TOLERANCE, rtol=0)


@torch.no_grad()
def test_rewound_cache_is_as_new(pair: Pair) -> None:
    ids = random_ids(1, 20, seed=2)
    cache = pair.decoder.new_cache(batch=1, max_length=20)
    pair.decoder(random_ids(1, 20, seed=3), cache)
    cache.rewind(0)
    first = pair.decoder(ids, cache)
    cache.rewind(8)
    again = pair.decoder(ids[:, 8:], cache)
    expected = pair.reference(ids).logits
    torch.testing.assert_close(first, expected, atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(again, expected[:, 8:], atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("stop", [None, 1, [1, 5, 40, 77]])
def test_greedy_text(pair: Pair, stop: int | list[int] | None) -> None:
    ids = random_ids(3, 9, seed=4)
    pair.reference.generation_config.eos_token_id = stop
    settings = GenerationConfig(max_new_tokens=24, do_sample=False, pad_token_id=1)
    expected = pair.reference.generate(
        ids, attention_mask=torch.ones_like(ids), generation_config=settings
    )[:, ids.shape[1] :]
    assert stop is not None or expected.shape == (3, 24)
    stops = [] if stop is None else [stop] if isinstance(stop, int) else stop
    made = torch.stack(
        list(generate(pair.decoder, ids, max_new_tokens=24, stop_tokens=stops)), dim=1
    ).tolist()
    # transformers pads what has ended with token 1; here the token that ended it is repeated.
    for row, theirs in zip(made, expected.tolist(), strict=True):
        end = next((n for n, token in enumerate(theirs) if token in stops), len(theirs))
        assert row[: end + 1] == theirs[: end + 1]
        assert row[end:] == row[end : end + 1] * len(row[end:])


@torch.no_grad()
@pytest.mark.parametrize("window", [1, 5, 16])
def test_a_child_all_of_whose_layers_have_a_window_is_mistrals(tmp_path: Any, window: int) -> None:
    ids, changes = random_ids(2, 40), FEWER_KV
    write_parent(tmp_path, **changes)
    expected = reference(**changes, model_type="mistral", sliding_window=window)(ids).logits
    parent = load_decoder(tmp_path)
    pairs = [(f"gqa_2_window_{window}", parent.config.ffn)] * 2
    child = HeterogeneousDecoder(parent.config, ArchitectureSpec.of("parent", pairs))
    child.load_state_dict(parent.state_dict())
    torch.testing.assert_close(child(ids), expected, atol=TOLERANCE, rtol=0)
    cache = child.new_cache(batch=2, max_length=40)
    parts = [child(part, cache) for part in ids.split([7, 20, 1, 1, 11], dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), expected, atol=TOLERANCE, rtol=0)


@torch.no_grad()
def test_bf16_stays_near_fp32(tmp_path: Any) -> None:
    write_parent(tmp_path, **FEWER_KV)
    ids = random_ids(2, 30)
    exact = load_decoder(tmp_path)(ids)
    rounded = load_decoder(tmp_path, dtype=torch.bfloat16)(ids)
    assert rounded.dtype == torch.bfloat16
    error = (rounded.float() - exact).square().mean() / exact.square().mean()
    assert error < 1e-3


def test_table_made_while_generating_serves_training_too(tmp_path: Any) -> None:
    write_parent(tmp_path)
    decoder = load_decoder(tmp_path)
    ids = random_ids(1, 5)
    list(generate(decoder, ids, max_new_tokens=2))
    decoder.requires_grad_(True)
    decoder(ids).sum().backward()
    assert decoder.blocks[0].attention.k_proj.weight.grad is not None


@torch.no_grad()
def test_full_pass_beyond_the_positions_is_refused(tmp_path: Any) -> None:
    write_parent(tmp_path)
    decoder = load_decoder(tmp_path)
    decoder(random_ids(1, 128))
    with pytest.raises(InputError, match="128"):
        decoder(random_ids(1, 129))
