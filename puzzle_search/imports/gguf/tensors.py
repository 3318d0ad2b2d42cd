"""The tensors of a GGUF file under Llama's names, a few million numbers in memory at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from puzzle_search.arch import ParentConfig, parse_variant
from puzzle_search.errors import InputError
from puzzle_search.imports.gguf.config import EMBEDDING, HEAD, ROPE_DIVISORS
from puzzle_search.imports.gguf.safetensors_file import StoredDtype
from puzzle_search.imports.gguf.source import Array, GgufSource, Shape

_ATTENTION = {
    "q_proj": "attn_q",
    "k_proj": "attn_k",
    "v_proj": "attn_v",
    "o_proj": "attn_output",
    "q_norm": "attn_q_norm",
    "k_norm": "attn_k_norm",
}
_FFN = {"gate_proj": "ffn_gate", "up_proj": "ffn_up", "down_proj": "ffn_down"}

# llama.cpp rotates neighbours in these, where transformers rotates halves of a head.
_INTERLEAVED = ("llama", "mistral3")

_CHUNK = 2**24
"""Numbers that are dequantised at a time."""


@dataclass(frozen=True, kw_only=True)
class PlannedTensor:
    """One tensor of the folder.

    Attributes:
        stored: its name in the GGUF file.
        shape: its shape in both.
        heads: of a query or key matrix whose rows llama.cpp permutes; 0 where it does not.
    """

    stored: str
    shape: Shape
    heads: int = 0


def plan_tensors(source: GgufSource, config: ParentConfig) -> dict[str, PlannedTensor]:
    """Every tensor of the folder by its name there.

    Raises:
        InputError: the file lacks one, has one of another shape, or holds others.
    """
    table = (config.vocab_size, config.hidden_size)
    norm = (config.hidden_size,)
    plan = {
        "model.embed_tokens.weight": PlannedTensor(stored=EMBEDDING, shape=table),
        "model.norm.weight": PlannedTensor(stored="output_norm.weight", shape=norm),
    }
    if not config.tie_embeddings:
        plan["lm_head.weight"] = PlannedTensor(stored=HEAD, shape=table)
    interleaved = source.architecture in _INTERLEAVED
    rotated = {"q_proj": config.num_heads, "k_proj": config.num_kv_heads} if interleaved else {}
    attention = parse_variant("attention", config.attention).tensors(config)
    ffn = parse_variant("ffn", config.ffn).tensors(config)
    for layer in range(config.num_layers):
        here, there = f"model.layers.{layer}", f"blk.{layer}"
        for norm_here, norm_there in (
            ("input_layernorm", "attn_norm"),
            ("post_attention_layernorm", "ffn_norm"),
        ):
            plan[f"{here}.{norm_here}.weight"] = PlannedTensor(
                stored=f"{there}.{norm_there}.weight", shape=norm
            )
        for module, names, shapes in (("self_attn", _ATTENTION, attention), ("mlp", _FFN, ffn)):
            for local, shape in shapes.items():
                part, kind = local.split(".")
                plan[f"{here}.{module}.{local}"] = PlannedTensor(
                    stored=f"{there}.{names[part]}.{kind}", shape=shape, heads=rotated.get(part, 0)
                )
    _check_plan(source, plan)
    return plan


def _check_plan(source: GgufSource, plan: Mapping[str, PlannedTensor]) -> None:
    wanted = {one.stored: one.shape for one in plan.values()}
    for name, shape in wanted.items():
        if name not in source.tensors:
            raise source.refuse(
                f"tensor {name} is missing", remedy="use a file that holds the whole model"
            )
        if source.tensors[name].shape != shape:
            raise source.refuse(
                f"tensor {name} has shape {source.tensors[name].shape}, expected {shape}",
                remedy="use a file whose tensors belong to its metadata",
            )
    if others := sorted(source.tensors.keys() - wanted.keys() - {ROPE_DIVISORS}):
        raise source.refuse(
            f"holds {len(others)} tensors that a {source.architecture} model of this package has "
            f"no place for: {', '.join(others[:3])}",
            remedy="use a dense Llama-like model",
        )


def stored_values(
    source: GgufSource, plan: Mapping[str, PlannedTensor], dtype: StoredDtype
) -> Iterator[Array]:
    """The values of every tensor of a plan in its order, rounded, in pieces of whole rows.

    Raises:
        InputError: a value is not a number, or too large for the dtype.
    """
    for planned in plan.values():
        tensor = source.tensors[planned.stored]
        rows = _in_halves(tensor.data, planned.heads) if planned.heads else tensor.data
        step = max(1, _CHUNK // (planned.shape[-1] if len(planned.shape) > 1 else 1))
        for start in range(0, len(rows), step):
            values = tensor.values(rows[start : start + step])
            if not np.isfinite(values).all():
                raise source.refuse(
                    f"tensor {planned.stored} holds values that are not finite",
                    remedy="download the file again, or convert the model again",
                )
            yield _rounded(values, dtype, f"{source.file}: tensor {planned.stored}")


def _in_halves(rows: Array, heads: int) -> Array:
    """Rows of each head as transformers rotates them: first those of even index, then the odd.

    Quantised rows are permuted as they are, since no block of values spans two of them.
    """
    pairs = rows.reshape(heads, -1, 2, *rows.shape[1:])
    return pairs.swapaxes(1, 2).reshape(rows.shape)


def _rounded(values: Array, dtype: StoredDtype, where: str) -> Array:
    if dtype == "fp32":
        return values
    if dtype == "bf16":
        # numpy has no bfloat16: the upper half of a float32, rounded to the nearest, ties to even.
        bits = values.view(np.uint32)
        rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> 16
        return rounded.astype(np.uint16)
    with np.errstate(over="ignore"):
        half = values.astype(np.float16)
    if not np.isfinite(half).all():
        raise InputError(
            f"{where} holds {abs(values).max():g}, more than fp16 can", remedy="use --dtype bf16"
        )
    return half
