"""A puzzle_dir in the shape of Model-Optimizer's Puzzletron, with numbers made up by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

SCORES = "single_sequence_replacement_solutions--validation"


def attention(kv_heads: int | None) -> dict[str, Any]:
    """KV heads, or a no-op."""
    return {
        "no_op": kv_heads is None,
        "replace_with_linear": False,
        "sparsify": None,
        "weights_precision": "bf16",
        "num_key_value_heads": kv_heads,
        "llama4": None,
        "mamba": None,
    }


def ffn(width: int | None) -> dict[str, Any]:
    """Intermediate size, or a no-op."""
    return {
        "no_op": width is None,
        "replace_with_linear": False,
        "sparsify": None,
        "weights_precision": "bf16",
        "moe": None,
        "intermediate_size": width,
    }


def replacement(layer: int, kv_heads: int | None, width: int | None) -> dict[str, Any]:
    block = {"attention": attention(kv_heads), "ffn": ffn(width), "parallel_blocks": None}
    return {
        "parent_layer_indices": [layer],
        "weight_paths": [f"ckpts/{layer}.safetensors"],
        "child_block_configs": [block],
    }


# Two layers: KV heads and width of the parent (4, 256) and of two replacements, KL of these.
REPLACEMENTS = [(0, 4, 128, 0.5), (0, None, 256, 2.0), (1, 4, 128, 0.25), (1, None, 256, 1.0)]


def library() -> list[dict[str, Any]]:
    parents = [replacement(layer, 4, 256) for layer in (0, 1)]
    return parents + [replacement(layer, heads, width) for layer, heads, width, _ in REPLACEMENTS]


def stats(
    batch: int, *, dtype: str = "torch.bfloat16", timed: bool = True, generation: int = 16
) -> dict[str, Any]:
    """One operating point; each batch has other memory, so that a wrong pick shows."""

    def subblock(config: dict[str, Any], kind: str, layer: int, **cost: float) -> dict[str, Any]:
        runtime = cost["runtime_ms"] if timed else None
        return {
            "subblock_config": config,
            "subblock_config_class": kind,
            "parent_layer_index": layer,
            "prefill_runtime_ms": None,
            "decode_runtime_ms": None,
            **cost,
            "runtime_ms": runtime,
        }

    subblocks = []
    for layer in (0, 1):
        heads, none = attention(4), attention(None)
        subblocks += [
            subblock(heads, "AttentionConfig", layer,
                     memory_mib=2.5 * batch, runtime_ms=3.0 + layer, num_params=700),
            subblock(none, "AttentionConfig", layer, memory_mib=0, runtime_ms=0.0, num_params=0),
            subblock(ffn(256), "FFNConfig", layer, memory_mib=4.0, runtime_ms=2.0, num_params=900),
            subblock(ffn(128), "FFNConfig", layer, memory_mib=2.0, runtime_ms=1.5, num_params=450),
        ]  # fmt: skip
    return {
        "args": {
            "is_calc_runtime": timed,
            "gpu": "NVIDIA H100" if timed else None,
            "batch_size": batch,
            "prefill_seq_len": 8,
            "generation_seq_len": generation,
            "weights_dtype": dtype,
            "activations_dtype": dtype,
            "kv_cache_dtype": "torch.bfloat16",
        },
        "non_block": {"runtime_ms": 0.75 if timed else None, "memory_mib": 1.5, "num_params": 60},
        "subblocks": subblocks,
    }


def write_puzzle(folder: Path, measurements: list[dict[str, Any]]) -> Path:
    scores = folder / SCORES
    scores.mkdir(parents=True)
    (folder / "replacement_library.json").write_text(json.dumps(library()))
    (folder / "subblock_stats.json").write_text(json.dumps(measurements))
    for number, (layer, heads, width, kl) in enumerate(REPLACEMENTS):
        solution = {
            "lm_loss": {"avg": 3.0 + kl, "per_sample": [3.0, 3.0 + 2 * kl]},
            "token_accuracy_top_1": {"avg": 0.75, "per_sample": [0.5, 1.0]},
            "kl_div": {"avg": kl, "per_sample": [0.0, 2 * kl]},
            "i_solution": number,
            "puzzle_solution": {
                "single_sequence_replacement": replacement(layer, heads, width),
                "chosen_replacements": [],
                "block_configs": [],
            },
            "args": {"eval_samples": 2},
        }
        (scores / f"solution_{number}.json").write_text(json.dumps(solution))
    teacher = {
        "lm_loss": {"avg": 2.75, "per_sample": [2.5, 3.0]},
        "token_accuracy_top_1": {"avg": 0.875, "per_sample": [0.75, 1.0]},
        "args": {},
    }
    (scores / "teacher.json").write_text(json.dumps(teacher))
    return folder
