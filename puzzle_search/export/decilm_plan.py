"""A child as a folder that vLLM or mlx-lm loads, with nothing of this package in it.

Both compute children as ``nemotron-nas`` (DeciLM), which has no q/k norms, no window, and one
switch for the biases of q, k, v and o. vLLM has no linear subblock and wants attention in the first
block; mlx-lm has linear subblocks under a name of its own. A child whose blocks are all alike is
written as a model of its parent's own type.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from puzzle_search.arch import (
    ArchitectureSpec,
    BlockChoice,
    Gqa,
    Linear,
    Mlp,
    ParentConfig,
    Subblock,
)
from puzzle_search.arch.slots import Block, Part, in_blocks, parts_of, told_blocks, uniform_sizes
from puzzle_search.arch.variants import Shape
from puzzle_search.checkpoint import CheckpointReader, child_config, outside_names
from puzzle_search.checkpoint.child import CONFIGURATION_MODULE, STOCK_TYPE, both_rope_forms
from puzzle_search.checkpoint.names import checkpoint_name, subblock_shapes
from puzzle_search.errors import InputError
from puzzle_search.export.plan import ExportPlan, PlannedTensor, SubstituteForm
from puzzle_search.solve.problem.portability import check_exportable

ENGINES = ("vllm", "mlx-lm")
TYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
_MULTIPLE = 256  # of FFN widths
# silu(32) is 32 to the last bit of every type, and 1/32 is exact in all of them.
_GATE = 32.0


@dataclass(frozen=True, kw_only=True)
class _Setting:
    """What every tensor of a plan is made with."""

    engine: str
    config: ParentConfig
    reader: CheckpointReader
    dtype: str
    mlp_bias: bool
    output_bias: bool


def check_type(engine: str, dtype: str) -> None:
    """Check that matrices can be written in a type.

    Raises:
        InputError: it is not known.
    """
    if dtype not in TYPES:
        raise InputError(
            f"dtype {dtype!r} is not known to {engine}", remedy=f"use one of {', '.join(TYPES)}"
        )


def plan_decilm(
    engine: str,
    config: ParentConfig,
    spec: ArchitectureSpec,
    reader: CheckpointReader,
    dtype: str,
) -> ExportPlan:
    """Plan the folder of a parent or child for one of ``ENGINES``.

    Raises:
        InputError: the type is not known, or the engine cannot compute the model.
    """
    check_type(engine, dtype)
    check_exportable(engine, spec, config)
    blocks = in_blocks(parts_of(spec), linear_as="ffn")
    uniform = uniform_sizes(blocks)
    swiglu = engine == "vllm" and any(_is_linear(block.ffn) for block in blocks)
    setting = _Setting(
        engine=engine,
        config=config,
        reader=reader,
        dtype=dtype,
        mlp_bias=config.mlp_bias or swiglu,
        # DeciLM's one switch asks for o_proj's bias where q, k and v have theirs.
        output_bias=config.output_bias or (uniform is None and config.qkv_bias),
    )
    tensors = [_read(setting, name, name, shape) for name, shape in outside_names(config).items()]
    forms: list[SubstituteForm] = []
    for number, block in enumerate(blocks):
        for planned, form, own in _block(setting, number, block):
            tensors += planned
            if form:
                extra = sum(tensor.bytes for tensor in planned) - own * TYPES[dtype].itemsize
                where = f"block {number} of the folder"
                forms.append(SubstituteForm(where=where, form=form, extra_bytes=extra))
    header = (
        _own_config(config, len(blocks), uniform, dtype)
        if uniform
        else _decilm_config(setting, spec, blocks)
    )
    return ExportPlan(
        engine=engine,
        architecture=header["model_type"],
        blocks=len(blocks),
        tensors=tuple(tensors),
        forms=tuple(forms),
        notes=tuple(told_blocks(spec, blocks)),
        header=header,
    )


def _is_linear(part: Part | None) -> bool:
    return part is not None and isinstance(part.variant, Linear)


def _block(
    setting: _Setting, number: int, block: Block
) -> Iterator[tuple[list[PlannedTensor], str, int]]:
    """Tensors of each slot, the form of a substitute, and the child's own numbers in that."""
    config = setting.config
    if block.attention is not None:
        yield _attention(setting, number, block.attention), "", 0
    elif number == 0 and setting.engine == "vllm":
        form = "attention of one KV head of zeros, because the first block needs attention"
        shapes = subblock_shapes(Gqa(1), config) | _output_bias(setting)
        yield [_zeros(setting, "attention", number, *one) for one in shapes.items()], form, 0
    if block.ffn is None:
        return
    if not _is_linear(block.ffn):
        yield _mlp(setting, number, block.ffn), "", 0
    elif setting.engine == "mlx-lm":
        yield _mlx_linear(setting, number, block.ffn), "", 0
    else:
        form = f"SwiGLU of a constant gate for the {block.ffn} of the child"
        own = config.hidden_size**2 + config.hidden_size
        yield _swiglu_of_matrix(setting, number, block.ffn), form, own


def _output_bias(setting: _Setting) -> dict[str, Shape]:
    return {"o_proj.bias": (setting.config.hidden_size,)} if setting.output_bias else {}


def _attention(setting: _Setting, number: int, part: Part) -> list[PlannedTensor]:
    own = subblock_shapes(part.variant, setting.config)
    tensors = [_part(setting, number, part, local, shape) for local, shape in own.items()]
    missing = _output_bias(setting).keys() - own.keys()
    added = [(local, _output_bias(setting)[local]) for local in missing]
    return tensors + [_zeros(setting, "attention", number, *one) for one in added]


def _mlp(setting: _Setting, number: int, part: Part) -> list[PlannedTensor]:
    config = setting.config
    own = subblock_shapes(part.variant, config)
    tensors = [_part(setting, number, part, local, shape) for local, shape in own.items()]
    if setting.mlp_bias and not config.mlp_bias:
        assert isinstance(part.variant, Mlp)
        for local, size in _bias_sizes(part.variant.intermediate_size, config).items():
            tensors.append(_zeros(setting, "ffn", number, local, (size,)))
    return tensors


def _bias_sizes(width: int, config: ParentConfig) -> dict[str, int]:
    return {"gate_proj.bias": width, "up_proj.bias": width, "down_proj.bias": config.hidden_size}


def _mlx_linear(setting: _Setting, number: int, part: Part) -> list[PlannedTensor]:
    hidden = setting.config.hidden_size
    norm, matrix = (
        checkpoint_name(part.subblock, part.block, local)
        for local in ("norm.weight", "linear.weight")
    )
    place = f"model.layers.{number}.mlp.linear"
    tensors = [
        _read(setting, checkpoint_name("ffn", number, "norm.weight"), norm, (hidden,)),
        _read(setting, f"{place}.weight", matrix, (hidden, hidden)),
    ]
    if setting.mlp_bias:
        bias = _planned(setting, f"{place}.bias", (hidden,), "zeros", lambda: torch.zeros(hidden))
        tensors.append(bias)
    return tensors


def _swiglu_of_matrix(setting: _Setting, number: int, part: Part) -> list[PlannedTensor]:
    """``W x`` as ``down(silu(gate(x)) * up(x))``: gate 32 everywhere, up x / 32, down W."""
    hidden = setting.config.hidden_size
    width = _wide(hidden)
    norm, matrix = (
        checkpoint_name(part.subblock, part.block, local)
        for local in ("norm.weight", "linear.weight")
    )

    def up() -> torch.Tensor:
        return torch.eye(width, hidden) / _GATE

    def down() -> torch.Tensor:
        own = setting.reader.tensor(matrix, (hidden, hidden))
        return torch.nn.functional.pad(own, (0, width - hidden))

    made: dict[str, tuple[Shape, str, Callable[[], torch.Tensor]]] = {
        "gate_proj.weight": ((width, hidden), "zeros", lambda: torch.zeros(width, hidden)),
        "gate_proj.bias": ((width,), "constant gate", lambda: torch.full((width,), _GATE)),
        "up_proj.weight": ((width, hidden), "identity / 32", up),
        "up_proj.bias": ((width,), "zeros", lambda: torch.zeros(width)),
        "down_proj.weight": ((hidden, width), matrix, down),
        "down_proj.bias": ((hidden,), "zeros", lambda: torch.zeros(hidden)),
    }
    norm_name = checkpoint_name("ffn", number, "norm.weight")
    return [_read(setting, norm_name, norm, (hidden,))] + [
        _planned(setting, checkpoint_name("ffn", number, local), shape, source, make)
        for local, (shape, source, make) in made.items()
    ]


def _part(setting: _Setting, number: int, part: Part, local: str, shape: Shape) -> PlannedTensor:
    name = checkpoint_name(part.subblock, number, local)
    return _read(setting, name, checkpoint_name(part.subblock, part.block, local), shape)


def _read(setting: _Setting, name: str, source: str, shape: Shape) -> PlannedTensor:
    return _planned(setting, name, shape, source, lambda: setting.reader.tensor(source, shape))


def _zeros(
    setting: _Setting, slot: Subblock, number: int, local: str, shape: Shape
) -> PlannedTensor:
    fill = torch.ones if "norm" in local else torch.zeros
    name = checkpoint_name(slot, number, local)
    return _planned(setting, name, shape, fill.__name__, lambda: fill(shape))


def _planned(
    setting: _Setting, name: str, shape: Shape, source: str, make: Callable[[], torch.Tensor]
) -> PlannedTensor:
    size = math.prod(shape) * TYPES[setting.dtype].itemsize
    return PlannedTensor(
        name=name, shape=shape, dtype=setting.dtype, bytes=size, source=source, make=make
    )


def _wide(size: int) -> int:
    return -(-size // _MULTIPLE) * _MULTIPLE


def _decilm_config(
    setting: _Setting, spec: ArchitectureSpec, blocks: list[Block]
) -> dict[str, Any]:
    config = setting.config
    written = tuple(
        BlockChoice(
            attention=_attention_of(setting, number, block),
            ffn=_ffn_of(setting, block.ffn),
            layers=(number,),
        )
        for number, block in enumerate(blocks)
    )
    dtype = str(TYPES[setting.dtype]).removeprefix("torch.")
    given = child_config(config, ArchitectureSpec(parent=spec.parent, blocks=written), dtype=dtype)
    del given["puzzle_search"]
    return given | {
        "model_type": STOCK_TYPE,
        "architectures": ["DeciLMForCausalLM"],
        "auto_map": {"AutoConfig": f"{CONFIGURATION_MODULE}.DeciLMConfig"},
        "attention_bias": config.qkv_bias,
        "mlp_bias": setting.mlp_bias,
    }


def _attention_of(setting: _Setting, number: int, block: Block) -> str:
    if block.attention is not None:
        return str(block.attention.variant)
    return "gqa_1" if number == 0 and setting.engine == "vllm" else "no_op"


def _ffn_of(setting: _Setting, part: Part | None) -> str:
    if part is None:
        return "no_op"
    if _is_linear(part) and setting.engine == "vllm":
        return str(Mlp(_wide(setting.config.hidden_size)))
    return str(part.variant)


def unfused(config: ParentConfig) -> dict[str, Any]:
    """The parent's configuration of weights as they are exported: neither quantised nor fused.

    Of a family with fused tensors it is Mistral's, whose model of the parts is the same.
    """
    given = {key: value for key, value in config.raw.items() if key != "quantization_config"}
    if config.family.fused:
        given |= {"model_type": "mistral", "sliding_window": config.sliding_window}
    return given


def _own_config(
    config: ParentConfig, blocks: int, uniform: tuple[int, int], dtype: str
) -> dict[str, Any]:
    """The parent's configuration with other sizes."""
    given = unfused(config)
    for key in ("dtype", "torch_dtype", "auto_map"):
        given.pop(key, None)
    if isinstance(given.get("layer_types"), list):
        given["layer_types"] = given["layer_types"][:blocks]
    return (
        given
        | both_rope_forms(config.raw)
        | {
            "architectures": [f"{given['model_type'].capitalize()}ForCausalLM"],
            "num_hidden_layers": blocks,
            "num_key_value_heads": uniform[0],
            "intermediate_size": uniform[1],
            "torch_dtype": str(TYPES[dtype]).removeprefix("torch."),
        }
    )
