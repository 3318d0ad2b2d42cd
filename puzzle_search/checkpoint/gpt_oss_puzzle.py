"""Children of gpt-oss written as NVIDIA publishes them: ``model_type: gpt_oss_puzzle``.

``block_configs`` has one entry a layer with its number of experts and its window, null for full
attention; all else is as in the parent's own ``config.json``. `heterogeneous` reads it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from puzzle_search.arch import ArchitectureSpec, BlockChoice, Gqa, Moe, ParentConfig
from puzzle_search.checkpoint.heterogeneous import GPT_OSS_PUZZLE


def fits_puzzle_format(config: ParentConfig, spec: ArchitectureSpec) -> bool:
    """Whether the format can say a child: other windows and fewer experts, and nothing else."""
    return config.model_type == "gpt_oss" and all(
        isinstance(attention := block.attention_variant, Gqa)
        and attention == Gqa(config.num_kv_heads, attention.own_window)
        and isinstance(ffn := block.ffn_variant, Moe)
        and ffn == Moe(ffn.experts)
        and len(block.layers) == 1
        for block in spec.blocks
    )


def puzzle_config(raw: Mapping[str, Any], spec: ArchitectureSpec) -> dict[str, Any]:
    """The ``config.json`` of a child, with all that its parent's ``raw`` has besides."""
    blocks = [_entry(block) for block in spec.blocks]
    return dict(raw) | {
        "architectures": ["GptOssPuzzleForCausalLM"],
        "model_type": GPT_OSS_PUZZLE,
        "block_configs": blocks,
        "layer_types": [
            "full_attention" if block["sliding_window"] is None else "sliding_attention"
            for block in blocks
        ],
    }


def _entry(block: BlockChoice) -> dict[str, int | None]:
    attention, ffn = block.attention_variant, block.ffn_variant
    assert isinstance(attention, Gqa)
    assert isinstance(ffn, Moe)
    return {"num_local_experts": ffn.experts, "sliding_window": attention.own_window}
