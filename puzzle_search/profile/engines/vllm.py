"""The children that a variant is measured in by vLLM: configurations alone, weights at random."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from puzzle_search.arch import (
    ArchitectureSpec,
    Gqa,
    Mlp,
    ParentConfig,
    SearchSpace,
    Subblock,
    Variant,
)
from puzzle_search.checkpoint import child_config
from puzzle_search.checkpoint.child import fits_stock_format
from puzzle_search.checkpoint.child_folder import write_child_config
from puzzle_search.cost import Dtype
from puzzle_search.cost.memory import PREFILL_CHUNK_TOKENS
from puzzle_search.engines import VLLM
from puzzle_search.errors import InputError
from puzzle_search.profile.engines.engine import ServingEngine
from puzzle_search.profile.engines.grid import EngineGrid
from puzzle_search.profile.engines.stacks import Skipped, Stack, measurable
from puzzle_search.solve.problem.portability import allows_as_built

_ENGINE_DTYPES: dict[str, dict[str, str]] = {
    "bf16": {"dtype": "bfloat16"},
    "fp8": {"dtype": "bfloat16", "quantization": "fp8", "kv_cache_dtype": "fp8"},
    "fp32": {"dtype": "float32"},
}


class Vllm(ServingEngine):
    """vLLM, on whatever device it was built for."""

    installed = VLLM
    dtypes = tuple(_ENGINE_DTYPES)
    chunk_tokens = PREFILL_CHUNK_TOKENS

    @property
    def side_by_side(self) -> bool:
        """Where the cache's size is set, as on processors; else each takes all of the memory."""
        return "VLLM_CPU_KVCACHE_SPACE" in os.environ

    def stacks(
        self, config: ParentConfig, space: SearchSpace, tp_degrees: Sequence[int]
    ) -> tuple[list[Stack], Skipped]:
        """Every variant that vLLM loads, as the local shapes of one device.

        Raises:
            InputError: it cannot load any child of this parent, or a TP degree does not divide it.
        """
        if not fits_stock_format(config):
            raise InputError(
                f"vLLM cannot load children of {config.name}: their format is Llama's, "
                "without q/k norms, sliding windows, layers without rope, multipliers, norms after "
                "a subblock, and biases on q, k and v alone",
                remedy="profile with --engine torch",
            )
        found: list[Stack] = []
        skipped: Skipped = []
        for tp in tp_degrees:
            shard = _shard(config, tp)
            for subblock, name, variant in measurable(space):
                why = _hindrance(subblock, variant, tp, config)
                if why:
                    skipped.append({"point": f"{subblock} {name}, tp {tp}", "why": why})
                    continue
                local = _local(variant, tp)
                found.append(Stack(subblock=subblock, name=name, tp=tp, config=shard, local=local))
        return found, skipped

    def write(self, stack: Stack, blocks: int, dtype: Dtype, folder: Path) -> None:
        """Write a folder from which vLLM makes a child with so many repeats, by random weights.

        An attention variant is repeated without FFN. vLLM wants attention in the first block, so
        FFNs follow one block that has nothing else; it is in every child and cancels.
        """
        if stack.subblock == "attention":
            pairs = [(stack.local, "no_op")] * blocks
        else:
            pairs = [("gqa_1", "no_op")] + [("no_op", stack.local)] * blocks
        spec = ArchitectureSpec.of(stack.config.name, pairs)
        content = child_config(stack.config, spec, dtype="bfloat16")
        folder.mkdir(parents=True, exist_ok=True)
        write_child_config(folder, content)

    def settings(self, dtype: Dtype, grid: EngineGrid) -> dict[str, Any]:
        """Keyword arguments of ``vllm.LLM``."""
        return {
            "engine": _ENGINE_DTYPES[dtype.name]
            | {
                "load_format": "dummy",
                "trust_remote_code": True,  # of the class that this package wrote into the folder
                "skip_tokenizer_init": True,
                "generation_config": "vllm",
                "enable_prefix_caching": False,
                "enable_chunked_prefill": True,
                # A step then takes the host's time and the device's, not the larger of the two, so
                # that what repeats add is the device's.
                "async_scheduling": False,
                "max_model_len": grid.max_length,
                "max_num_seqs": grid.max_batch,
                "max_num_batched_tokens": grid.chunk_tokens,
            }
        }


def _hindrance(subblock: Subblock, variant: Variant, tp: int, config: ParentConfig) -> str | None:
    """Why vLLM does not load a variant on each of ``tp`` devices; None if it does."""
    pair = (str(variant), "no_op") if subblock == "attention" else ("no_op", str(variant))
    if not allows_as_built("vllm", *pair, 1, config):
        return "vLLM does not load this variant"
    if isinstance(variant, Mlp) and variant.intermediate_size % (256 * tp):
        return "a nemotron-nas width is a multiple of 256, on each device"
    if isinstance(variant, Gqa) and variant.kv_heads % tp and tp % variant.kv_heads:
        return f"vLLM does not share {variant.kv_heads} KV heads among {tp} devices"
    return None


def _local(variant: Variant, tp: int) -> str:
    """The variant with the shapes that one of ``tp`` devices holds; few KV heads are copied."""
    if isinstance(variant, Gqa):
        return f"gqa_{max(1, variant.kv_heads // tp)}"
    assert isinstance(variant, Mlp)
    return f"mlp_{variant.intermediate_size // tp}"


def _shard(config: ParentConfig, tp: int) -> ParentConfig:
    """The parent with the heads, widths and vocabulary of one of ``tp`` devices."""
    sizes: dict[str, Any] = {
        "num_attention_heads": config.num_heads,
        "intermediate_size": config.intermediate_size,
        "vocab_size": config.vocab_size,
    }
    for key, size in sizes.items():
        if size % tp:
            raise InputError(
                f"tp {tp} does not divide {key} {size} of {config.name}",
                remedy="profile another --tp",
            )
        sizes[key] = size // tp
    sizes["num_key_value_heads"] = max(1, config.num_kv_heads // tp)
    sizes["head_dim"] = config.head_dim
    return ParentConfig.from_dict(dict(config.raw) | sizes, name=config.name)
