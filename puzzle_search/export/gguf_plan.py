"""A child as a GGUF file: which architecture of llama.cpp, which tensors, which keys.

llama.cpp computes children as ``deci``, whose blocks have their own KV heads and FFN width
(``src/models/deci.cpp``). It drops attention without an FFN in silence, and wants attention in the
first block; both get a substitute of zeros. A child whose blocks are all alike is written as its
parent's own architecture. Every tensor has a type of its own: a subblock's matrices that which its
variant names, all others the file's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch

from puzzle_search.arch import ArchitectureSpec, Gqa, Mlp, ParentConfig, Subblock
from puzzle_search.arch.slots import Block, Part, in_blocks, parts_of, told_blocks, uniform_sizes
from puzzle_search.arch.variants import Shape
from puzzle_search.checkpoint.names import (
    EMBEDDING,
    FINAL_NORM,
    HEAD,
    checkpoint_name,
    subblock_shapes,
)
from puzzle_search.errors import InputError
from puzzle_search.export.gguf_types import TYPES, stored_bytes, stored_type
from puzzle_search.export.plan import ExportPlan, PlannedTensor, SubstituteForm
from puzzle_search.model.rope import RopeFrequencies, Rotary
from puzzle_search.solve.problem.portability import check_exportable

ENGINE = "llama.cpp"
_ZERO_WIDTH = 32  # the least that every type can store: they hold 32 weights in a block or fewer
_OWN = {"llama": "llama", "mistral": "llama", "phi3": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
_INTERLEAVED = ("llama", "deci")  # pairs of rotary lie beside each other
_SLOT = {"attention": "attn", "ffn": "ffn"}
_LOCAL = {
    "q_proj": "attn_q",
    "k_proj": "attn_k",
    "v_proj": "attn_v",
    "o_proj": "attn_output",
    "q_norm": "attn_q_norm",
    "k_norm": "attn_k_norm",
    "gate_proj": "ffn_gate",
    "up_proj": "ffn_up",
    "down_proj": "ffn_down",
    "linear": "attn_output",
}


class Weights(Protocol):
    """Where tensors come from, a `CheckpointReader` for one."""

    def tensor(self, name: str, shape: Shape) -> torch.Tensor:
        """The tensor of that name in the child."""


@dataclass(frozen=True, kw_only=True)
class _Setting:
    """What every tensor of a plan is made with."""

    config: ParentConfig
    reader: Weights
    dtype: str
    architecture: str


def plan_gguf(
    config: ParentConfig, spec: ArchitectureSpec, reader: Weights, dtype: str
) -> ExportPlan:
    """Plan the file of a parent or child.

    Raises:
        InputError: the type is not known, or llama.cpp cannot compute the model.
    """
    if dtype not in TYPES:
        raise InputError(f"dtype {dtype!r} is not known", remedy=f"use one of {', '.join(TYPES)}")
    check_exportable(ENGINE, spec, config)
    blocks = in_blocks(parts_of(spec), linear_as="attention")
    uniform = uniform_sizes(blocks)
    architecture = _OWN[config.model_type] if uniform else "deci"
    rope = Rotary(config).frequencies
    _check_rope(config, architecture, rope)
    setting = _Setting(config=config, reader=reader, dtype=dtype, architecture=architecture)
    tensors = list(_outside(setting, rope))
    forms: list[SubstituteForm] = []
    for number, block in enumerate(blocks):
        for planned, form in _block(setting, number, block):
            tensors += planned
            if form is not None:
                extra = sum(tensor.bytes for tensor in planned)
                where = f"block {number} of the file{_beside(block)}"
                forms.append(SubstituteForm(where=where, form=form, extra_bytes=extra))
    return ExportPlan(
        engine=ENGINE,
        architecture=architecture,
        blocks=len(blocks),
        tensors=tuple(tensors),
        forms=tuple(forms),
        notes=tuple(_notes(spec, blocks, tensors, dtype)),
        header=_header(config, architecture, blocks, uniform, rope, dtype),
    )


def _beside(block: Block) -> str:
    present = [str(part) for part in (block.attention, block.ffn) if part is not None]
    return f", beside {present[0]} of the child" if present else ""


def _check_rope(config: ParentConfig, architecture: str, rope: RopeFrequencies) -> None:
    scaled = _is_scaled(rope) and architecture not in _INTERLEAVED
    if rope.attention_scale != 1 or scaled:
        raise InputError(
            f"{ENGINE}: the rope scaling of {config.name} is not exported for the architecture "
            f"{architecture!r}",
            remedy="for 'llama' and 'deci', linear and llama3 scaling are; for others none",
        )


def _is_scaled(rope: RopeFrequencies) -> bool:
    return bool((rope.divisors - 1).abs().max() > 1e-6)


def _outside(setting: _Setting, rope: RopeFrequencies) -> Iterator[PlannedTensor]:
    config, table = setting.config, (setting.config.vocab_size, setting.config.hidden_size)
    yield _read(setting, "token_embd.weight", EMBEDDING, table)
    yield _read(setting, "output_norm.weight", FINAL_NORM, (config.hidden_size,))
    if not config.tie_embeddings:
        yield _read(setting, "output.weight", HEAD, table)
    if _is_scaled(rope):
        divisors = rope.divisors.float()
        source = "divisors of the rotary frequencies"
        yield _planned(setting, "rope_freqs.weight", tuple(divisors.shape), source, divisors.clone)


def _block(
    setting: _Setting, number: int, block: Block
) -> Iterator[tuple[list[PlannedTensor], str | None]]:
    """Tensors of both slots, and the form where a slot is filled by a substitute."""
    hidden = setting.config.hidden_size
    if block.attention is not None:
        yield list(_part(setting, number, "attention", block.attention)), None
    elif number == 0:
        shapes = {"attn_norm.weight": (hidden,), "attn_output.weight": (hidden, hidden)}
        form = "linear attention of zeros, because the first block needs attention"
        yield [_zeros(setting, number, name, shape) for name, shape in shapes.items()], form
    if block.ffn is not None:
        yield list(_part(setting, number, "ffn", block.ffn)), None
    else:
        across = (_ZERO_WIDTH, hidden)
        shapes = {
            "ffn_norm.weight": (hidden,),
            "ffn_gate.weight": across,
            "ffn_up.weight": across,
            "ffn_down.weight": across[::-1],
        }
        form = f"FFN of width {_ZERO_WIDTH} of zeros, because attention needs an FFN behind it"
        yield [_zeros(setting, number, name, shape) for name, shape in shapes.items()], form


def _part(setting: _Setting, number: int, slot: Subblock, part: Part) -> Iterator[PlannedTensor]:
    for local, shape in subblock_shapes(part.variant, setting.config).items():
        stem, kind = local.rsplit(".", 1)
        name = f"{_SLOT[slot]}_norm" if stem == "norm" else _LOCAL[stem]
        heads = None
        if stem in ("q_proj", "k_proj") and setting.architecture in _INTERLEAVED:
            assert isinstance(part.variant, Gqa)
            heads = setting.config.num_heads if stem == "q_proj" else part.variant.kv_heads
        source = checkpoint_name(part.subblock, part.block, local)
        own = replace(setting, dtype=part.variant.weights or setting.dtype)
        yield _read(own, f"blk.{number}.{name}.{kind}", source, shape, heads=heads)


def _read(
    setting: _Setting, name: str, source: str, shape: Shape, *, heads: int | None = None
) -> PlannedTensor:
    def make() -> torch.Tensor:
        tensor = setting.reader.tensor(source, shape)
        return tensor if heads is None else _interleave(tensor, heads)

    told = source if heads is None else f"{source}, rotary pairs side by side"
    return _planned(setting, name, shape, told, make)


def _zeros(setting: _Setting, number: int, name: str, shape: Shape) -> PlannedTensor:
    # Ones for the norm: its output meets zeros, and any other value would do as well.
    fill = torch.ones if "norm" in name else torch.zeros
    source = "ones" if "norm" in name else "zeros"
    return _planned(setting, f"blk.{number}.{name}", shape, source, lambda: fill(shape))


def _planned(
    setting: _Setting, name: str, shape: Shape, source: str, make: Callable[[], torch.Tensor]
) -> PlannedTensor:
    table = name in ("token_embd.weight", "output.weight")
    dtype = stored_type(shape, setting.dtype, table=table)
    size = stored_bytes(shape, dtype)
    return PlannedTensor(name=name, shape=shape, dtype=dtype, bytes=size, source=source, make=make)


def _interleave(tensor: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of each head from (first half, second half) to pairs, as interleaved rotary wants."""
    rest = tensor.shape[1:]
    return tensor.view(heads, 2, -1, *rest).transpose(1, 2).reshape(tensor.shape)


def _header(
    config: ParentConfig,
    architecture: str,
    blocks: list[Block],
    uniform: tuple[int, int] | None,
    rope: RopeFrequencies,
    dtype: str,
) -> dict[str, Any]:
    sizes: dict[str, Any] = {
        "attention.head_count": [_heads(config, n, block) for n, block in enumerate(blocks)],
        "attention.head_count_kv": [_kv_heads(block) for block in blocks],
        "feed_forward_length": [_width(block) for block in blocks],
    }
    if uniform:
        sizes = {
            "attention.head_count": config.num_heads,
            "attention.head_count_kv": uniform[0],
            "feed_forward_length": uniform[1],
        }
    return {
        "general.name": config.name,
        "general.file_type": TYPES[dtype],
        "block_count": len(blocks),
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "vocab_size": config.vocab_size,
        **sizes,
        "attention.key_length": config.head_dim,
        "attention.value_length": config.head_dim,
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "rope.dimension_count": config.head_dim,
        "rope.freq_base": rope.theta,
    }


def _heads(config: ParentConfig, number: int, block: Block) -> int:
    return config.num_heads if block.attention is not None or number == 0 else 0


def _kv_heads(block: Block) -> int:
    variant = block.attention.variant if block.attention is not None else None
    return variant.kv_heads if isinstance(variant, Gqa) else 0


def _width(block: Block) -> int:
    variant = block.ffn.variant if block.ffn is not None else None
    return variant.intermediate_size if isinstance(variant, Mlp) else _ZERO_WIDTH


def _notes(
    spec: ArchitectureSpec, blocks: list[Block], tensors: list[PlannedTensor], dtype: str
) -> Iterator[str]:
    yield from told_blocks(spec, blocks)
    matrices = [tensor for tensor in tensors if len(tensor.shape) > 1]
    other = [tensor for tensor in matrices if tensor.dtype != dtype]
    for stored in sorted({tensor.dtype for tensor in other}):
        count = sum(tensor.dtype == stored for tensor in other)
        size = math.fsum(tensor.bytes for tensor in other if tensor.dtype == stored)
        yield f"{count} matrices are stored as {stored} ({size / 1e6:.1f} MB)"
