"""A block library in the shape of NVlabs/puzzle, with numbers made up by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

# Attention, FFN; KV heads, width; MiB; ms; parameters; KL and loss of layers 0, 1 and 2.
BLOCKS: list[tuple[str, str, int, int, float, float, int, list[tuple[float, float]]]] = [
    ("4 kv heads (parent * 100%)", "intermediate size 1e3 (parent * 100%)", 4, 1024,
     12.5, 8.0, 5000, [(0.0, 1.5), (0.0, 1.5), (0.0, 1.5)]),
    ("4 kv heads (parent * 100%)", "intermediate size 0.5e3 (parent * 50%)", 4, 512,
     9.25, 5.0, 3000, [(0.5, 1.6), (0.25, 1.55), (1.0, 1.75)]),
    ("linear (parent * 0%)", "no_op (parent * 0%)", 0, 0,
     0.25, 0.5, 100, [(4.0, 3.0), (2.0, 2.5), (3.0, 2.75)]),
    ("no_op (parent * 0%)", "no_op (parent * 0%)", 0, 0,
     0, 0, 0, [(9.0, 6.0), (7.0, 4.5), (8.0, 5.0)]),
]  # fmt: skip


def library() -> dict[str, Any]:
    return {
        f"layer_{layer}": {
            f"attention = {attention}\t&&\tffn = {ffn}": {
                "stats": {
                    "num_kv_heads": heads,
                    "ffn_intermediate_size": width,
                    "memory_mib": memory,
                    "runtime_ms": runtime,
                    "num_params": parameters,
                    "attention_memory_mib": 0,
                    "attention_runtime_ms": 0,
                    "attention_num_params": 0,
                    "ffn_memory_mib": 0,
                    "ffn_runtime_ms": 0,
                    "ffn_num_params": 0,
                },
                "metrics": {"kl_div": metrics[layer][0], "lm_loss": metrics[layer][1]},
            }
            for attention, ffn, heads, width, memory, runtime, parameters, metrics in BLOCKS
        }
        for layer in (1, 0, 2)
    }


def write_library(folder: Path, blocks: dict[str, Any] | None = None) -> Path:
    """The three files; ``blocks`` in place of the whole block library."""
    folder.mkdir(parents=True, exist_ok=True)
    blocks = library() if blocks is None else blocks
    info = {"batch_size": 16, "sequence_length": 1200, "gpu": "NVIDIA H100", "dtype": "fp8"}
    parent = {
        "stats": {"num_kv_heads": 4, "ffn_intermediate_size": 1024},
        "metrics": {"kl_div": 0.0, "lm_loss": 1.5},
    }
    for name, data in (
        ("block_library", blocks),
        ("measurement_info", info),
        ("parent_block_stats", parent),
    ):
        (folder / f"{name}.json").write_text(json.dumps(data))
    return folder
