"""The children that a variant is measured in: nothing but repeats of it, as far as vLLM allows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from puzzle_search.arch import (
    ArchitectureSpec,
    Gqa,
    Mlp,
    NoOp,
    ParentConfig,
    SearchSpace,
    Subblock,
    Variant,
    parse_variant,
)
from puzzle_search.checkpoint import child_config
from puzzle_search.checkpoint.child import fits_stock_format
from puzzle_search.checkpoint.child_folder import write_child_config
from puzzle_search.errors import InputError
from puzzle_search.solve.problem.portability import allows_as_built


@dataclass(frozen=True, kw_only=True)
class Stack:
    """One variant at one tensor-parallel degree, with its local shapes.

    Attributes:
        subblock: attention or FFN.
        name: the variant's name in the whole model.
        tp: the tensor-parallel degree.
        config: the parent, with the shapes that one of ``tp`` devices holds.
        local: the variant's name in those shapes.
    """

    subblock: Subblock
    name: str
    tp: int
    config: ParentConfig
    local: str

    def __str__(self) -> str:
        return f"{self.subblock} {self.name}, tp {self.tp}"

    @property
    def key(self) -> list[str | int]:
        """What a journal knows it by."""
        return [self.subblock, self.name, self.tp]

    def write(self, folder: Path, blocks: int) -> None:
        """Write a folder from which vLLM makes a child with so many repeats, by random weights.

        An attention variant is repeated without FFN. vLLM wants attention in the first block, so
        FFNs follow one block that has nothing else; it is in every child and cancels.
        """
        if self.subblock == "attention":
            pairs = [(self.local, "no_op")] * blocks
        else:
            pairs = [("gqa_1", "no_op")] + [("no_op", self.local)] * blocks
        spec = ArchitectureSpec.of(self.config.name, pairs)
        content = child_config(self.config, spec, dtype="bfloat16")
        folder.mkdir(parents=True, exist_ok=True)
        write_child_config(folder, content)


def stacks(
    config: ParentConfig, space: SearchSpace, tp_degrees: tuple[int, ...]
) -> tuple[list[Stack], list[dict[str, str]]]:
    """Every variant that vLLM loads, and those that it does not, each with the reason.

    Raises:
        InputError: vLLM cannot load any child of this parent, or a TP degree does not divide it.
    """
    if not fits_stock_format(config):
        raise InputError(
            f"vLLM cannot load children of {config.name}: their format has no q/k norms, no "
            "sliding window, and no bias on q, k and v alone",
            remedy="profile with --engine puzzle-search",
        )
    found, skipped = [], []
    for tp in tp_degrees:
        local = _shard(config, tp)
        for subblock, name, variant in _variants(space):
            pair = (name, "no_op") if subblock == "attention" else ("no_op", name)
            why = None
            if not allows_as_built("vllm", *pair, 1, config):
                why = "vLLM does not load this variant"
            elif isinstance(variant, Mlp) and variant.intermediate_size % (256 * tp):
                why = "a nemotron-nas width is a multiple of 256, on each device"
            elif isinstance(variant, Gqa) and variant.kv_heads % tp and tp % variant.kv_heads:
                why = f"vLLM does not share {variant.kv_heads} KV heads among {tp} devices"
            if why:
                skipped.append({"point": f"{subblock} {name}, tp {tp}", "why": why})
                continue
            stack = Stack(
                subblock=subblock, name=name, tp=tp, config=local, local=_local(variant, tp)
            )
            found.append(stack)
    return found, skipped


def _variants(space: SearchSpace) -> Iterator[tuple[Subblock, str, Variant]]:
    subblocks: tuple[Subblock, Subblock] = ("attention", "ffn")
    for subblock in subblocks:
        for name in space.all_variants(subblock):
            variant = parse_variant(subblock, name)
            if not isinstance(variant, NoOp):
                yield subblock, name, variant


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
