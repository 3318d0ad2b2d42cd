"""Architectures of pico children that every engine is tried with."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace
from typing import Any

import pytest

from puzzle_search.arch import ArchitectureSpec, BlockChoice

ATTENTION, FFN = ["gqa_4", "gqa_1", "linear", "no_op"], ["mlp_512", "mlp_256", "linear", "no_op"]
KEPT = ("gqa_2", "mlp_512")
LAYERS = 4
PLACES = {
    "first": {0},
    "middle": {1},
    "last": {3},
    "pair": {1, 2},
    "first-pair": {0, 1},
    "run-to-last": {1, 2, 3},
    "all": {0, 1, 2, 3},
}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0,
          "high_freq_factor": 4.0, "original_max_position_embeddings": 32}  # fmt: skip
PARENTS: dict[str, dict[str, Any]] = {
    "llama": {},
    "tied": {"tie_word_embeddings": True},
    "heads-of-24": {"head_dim": 24},
    "llama3-rope": {"rope_parameters": LLAMA3},
    "linear-rope": {"rope_scaling": {"type": "linear", "factor": 2.0}, "rope_theta": 5e3},
    "biases": {"attention_bias": True, "mlp_bias": True},
    "mistral": {"model_type": "mistral", "sliding_window": None},
    "phi3": {"model_type": "phi3", "pad_token_id": 0},
    "qwen2": {"model_type": "qwen2"},
}


def pairs_of_every_place(*, with_attention: bool) -> list[Any]:
    """Every variant pair in every place; only children that keep attention, or only the others."""
    cases = []
    for (attention, ffn), (place, layers) in itertools.product(
        itertools.product(ATTENTION, FFN), PLACES.items()
    ):
        pairs = [(attention, ffn) if n in layers else KEPT for n in range(LAYERS)]
        if with_attention is any(a.startswith("gqa") for a, _ in pairs):
            cases.append(pytest.param(pairs, id=f"{attention}-{ffn}-{place}"))
    return cases


def random_spec(seed: int, layers: int) -> ArchitectureSpec:
    """Blocks of one to three layers, any variants in each, and attention in one."""
    draw, blocks, first = random.Random(seed), [], 0
    while first < layers:
        covered = tuple(range(first, min(layers, first + draw.choice([1, 1, 1, 2, 3]))))
        pair = draw.choice([*ATTENTION, "gqa_2"]), draw.choice(FFN)
        blocks.append(BlockChoice(attention=pair[0], ffn=pair[1], layers=covered))
        first += len(covered)
    number = draw.randrange(len(blocks))
    blocks[number] = replace(blocks[number], attention="gqa_2")
    return ArchitectureSpec(parent="pico", blocks=tuple(blocks))
