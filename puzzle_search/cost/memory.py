"""Bytes on one device: weights, KV cache and activations of each variant, by closed form."""

from __future__ import annotations

import math
from dataclasses import dataclass

from puzzle_search.arch import Gqa, ParentConfig, Variant, kept_tokens
from puzzle_search.arch.weight_types import WEIGHT_BYTES
from puzzle_search.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Dtype:
    """Bytes per number of a serving precision, their block scales among them.

    ``kv_dtype`` is the precision of the KV cache and of attention, ``vector_dtype`` that of the
    residual stream and norms, ``table_bytes`` of embedding and output head. Where experts alone are
    quantised, ``expert_dtype`` is theirs, of ``expert_bytes``, and ``product_dtype`` that of the
    other matrices.
    """

    name: str
    matrix_bytes: float
    vector_bytes: int
    kv_bytes: int
    kv_dtype: str
    vector_dtype: str
    table_bytes: float
    expert_dtype: str | None = None
    expert_bytes: float | None = None

    @property
    def product_dtype(self) -> str:
        """Of matrix products but those with experts."""
        return self.vector_dtype if self.expert_dtype else self.name

    def bytes_of(self, variant: Variant) -> float:
        """Bytes per number of a variant's matrices, which may be of a type of their own."""
        return self.matrix_bytes if variant.weights is None else WEIGHT_BYTES[variant.weights]


_DTYPES = {
    dtype.name: dtype
    for dtype in (
        # Quantised engines keep norms, biases, embedding and output head in bf16; those of NVFP4
        # the KV cache in fp8.
        Dtype(
            name="nvfp4",
            matrix_bytes=WEIGHT_BYTES["nvfp4"],
            vector_bytes=2,
            kv_bytes=1,
            kv_dtype="fp8",
            vector_dtype="bf16",
            table_bytes=2,
        ),
        Dtype(
            name="fp8",
            matrix_bytes=1,
            vector_bytes=2,
            kv_bytes=1,
            kv_dtype="fp8",
            vector_dtype="bf16",
            table_bytes=2,
        ),
        Dtype(
            name="bf16",
            matrix_bytes=2,
            vector_bytes=2,
            kv_bytes=2,
            kv_dtype="bf16",
            vector_dtype="bf16",
            table_bytes=2,
        ),
        Dtype(
            name="fp32",
            matrix_bytes=4,
            vector_bytes=4,
            kv_bytes=4,
            kv_dtype="fp32",
            vector_dtype="fp32",
            table_bytes=4,
        ),
        # gpt-oss: 32 values of its experts share an exponent of 8 bits, all else is bf16.
        *(
            Dtype(
                name=name,
                matrix_bytes=2,
                vector_bytes=2,
                kv_bytes=kv_bytes,
                kv_dtype=kv_dtype,
                vector_dtype="bf16",
                table_bytes=2,
                expert_dtype="mxfp4",
                expert_bytes=1 / 2 + 1 / 32,
            )
            for name, kv_dtype, kv_bytes in (("mxfp4", "bf16", 2), ("mxfp4_kv_fp8", "fp8", 1))
        ),
        # Of GGUF files, which share a scale of 2 bytes among 32 weights and keep tables in 8 bits
        # at least; llama.cpp computes in fp32 and caches in f16.
        *(
            Dtype(
                name=name,
                matrix_bytes=WEIGHT_BYTES[name],
                vector_bytes=4,
                kv_bytes=2,
                kv_dtype="f16",
                vector_dtype="fp32",
                table_bytes=max(WEIGHT_BYTES[name], WEIGHT_BYTES["q8_0"]),
            )
            for name in ("f16", "q8_0", "q4_0")
        ),
    )
}

# Tokens of one prefill step; longer prompts are cut into chunks of this size.
PREFILL_CHUNK_TOKENS = 8192
_LOGIT_BYTES = 4
EXPERTS_ALONE = tuple(name for name, dtype in _DTYPES.items() if dtype.expert_dtype)
"""Precisions of which experts are quantised and nothing else."""
_ROUTER = "gate.weight"
_CUT_BIASES = {f"{name}_proj.bias" for name in ("q", "k", "v", "gate", "up")}
_CUT_BIASES |= {"experts.gate_up_proj_bias", "sinks"}
_NORMS_OF_HEADS = {"q_norm.weight", "k_norm.weight"}


def parse_dtype(name: str) -> Dtype:
    """The precision of that name.

    Raises:
        InputError: it is not known.
    """
    if name not in _DTYPES:
        raise InputError(f"dtype {name!r} is not known", remedy=f"use one of {', '.join(_DTYPES)}")
    return _DTYPES[name]


def weight_bytes(variant: Variant, config: ParentConfig, dtype: Dtype, tp: int) -> int:
    """Weights of one subblock on one of ``tp`` devices, its replicated norm among them.

    All experts count, whatever a token passes; they are cut along their width. KV heads fewer than
    ``tp`` are replicated; so are routers, which stay in the dtype of vectors, and the biases of
    matrices that are cut along their inputs, since these are added to the sum over devices.
    """
    matrix_bytes = dtype.bytes_of(variant)
    shapes = variant.tensors(config)
    total = 0.0
    # A norm over all heads has weights for the heads of a device alone.
    cut = _CUT_BIASES | (_NORMS_OF_HEADS if config.family.qk_norm == "all" else set())
    for name, shape in shapes.items():
        share = 1 / tp
        if isinstance(variant, Gqa) and name.startswith(("k_proj", "v_proj", "k_norm")):
            share = math.ceil(variant.kv_heads / tp) / variant.kv_heads
        is_vector = len(shape) == 1 or name == _ROUTER or name.endswith("_bias")
        if is_vector and name not in cut:
            share = 1
        value_bytes: float = dtype.vector_bytes if is_vector else matrix_bytes
        if dtype.expert_bytes is not None and variant.weights is None and len(shape) == 3:
            value_bytes = dtype.expert_bytes
        total += math.prod(shape) * share * value_bytes
    norm = config.hidden_size * dtype.vector_bytes if shapes else 0
    return math.ceil(total) + norm


def kv_bytes_per_token(variant: Variant, config: ParentConfig, dtype: Dtype, tp: int) -> int:
    """KV cache of one token in one subblock, on one of ``tp`` devices."""
    if not isinstance(variant, Gqa):
        return 0
    local_heads = math.ceil(variant.kv_heads / tp)
    return 2 * local_heads * config.head_dim * dtype.kv_bytes


def kv_bytes(variant: Variant, config: ParentConfig, dtype: Dtype, tp: int, tokens: int) -> int:
    """KV cache of a sequence of ``tokens`` in one subblock, which stops growing at its window."""
    kept = kept_tokens(variant, config, tokens)
    return kept * kv_bytes_per_token(variant, config, dtype, tp)


def outside_bytes(config: ParentConfig, dtype: Dtype, tp: int) -> int:
    """Embedding, output head and final norm on one of ``tp`` devices."""
    tables = 1 if config.tie_embeddings else 2
    table = config.vocab_size * config.hidden_size
    norm_bytes = config.hidden_size * dtype.vector_bytes
    return math.ceil(tables * table / tp * dtype.table_bytes) + norm_bytes


def activation_bytes(
    config: ParentConfig,
    dtype: Dtype,
    *,
    batch: int,
    input_len: int,
    tp: int,
    widest_ffn: int,
    routed: int = 0,
    max_tokens: int = PREFILL_CHUNK_TOKENS,
) -> int:
    """Largest live activations of a step: the FFN of ``max_tokens`` tokens, and a batch's logits.

    Counts a full step, as engines run that pack tokens of several prompts; one that keeps
    sequences whole (`puzzle_search.cost.chunks`) stays below.

    Args:
        config: the parent.
        dtype: serving precision.
        batch: sequences.
        input_len: tokens of a prompt.
        tp: devices.
        widest_ffn: most intermediate activations of a token in any FFN.
        routed: most experts that give a hidden state each for one token.
        max_tokens: of a step.
    """
    tokens = max(batch, min(batch * input_len, max_tokens))
    per_token = ((4 + routed) * config.hidden_size + 2 * widest_ffn / tp) * dtype.vector_bytes
    return math.ceil(tokens * per_token + batch * config.vocab_size / tp * _LOGIT_BYTES)
