"""Latency of a parent's subblock variants from a GPU's calibrated constants.

Used where no profile exists: adds up the operators of `puzzle_search.cost.modelled.operators`.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
from numpy.typing import NDArray

from puzzle_search.arch import Gqa, Linear, Mlp, Moe, NoOp, ParentConfig, Subblock, parse_variant
from puzzle_search.cost.experts import distinct_experts
from puzzle_search.cost.latency import Evidence, Microseconds
from puzzle_search.cost.memory import parse_dtype
from puzzle_search.cost.modelled.hardware import CostModel
from puzzle_search.cost.modelled.operators import (
    BYTES_PER_VALUE,
    STREAM_BYTES,
    all_reduce_us,
    decode_attention_us,
    elementwise_us,
    experts_us,
    gemm_us,
    grouped_gemm_us,
    prefill_attention_us,
)
from puzzle_search.cost.step import Step
from puzzle_search.errors import InputError

_Array = NDArray[np.float64]


class AnalyticLatency:
    """Predicts latencies of a parent's subblock variants from a cost model.

    Weights, activations and KV cache are of ``dtype``, the KV cache fp8 under nvfp4; under both the
    residual stream, norms, embedding and output head stay bf16. Projections are column-parallel
    then row-parallel over the TP group, with one all-reduce per subblock; KV heads fewer than the
    TP degree are replicated.

    Args:
        config: the parent.
        model: constants of the device.
        engine: serving engine whose constants to use.
        dtype: a serving precision; of ``mxfp4`` experts alone are quantised.
        dynamic_quantisation: charge each fp8 GEMM the quantisation of its activations, which
            engines with static scales do not pay.

    Raises:
        InputError: the engine or the dtype is not known, or has no constants.
    """

    def __init__(
        self,
        config: ParentConfig,
        model: CostModel,
        engine: str,
        dtype: str,
        *,
        dynamic_quantisation: bool = False,
    ) -> None:
        self.config = config
        self.sheet = model.sheet
        self.constants = model.engine(engine)
        if parse_dtype(dtype).name not in self.constants.dtypes:
            raise InputError(
                f"the cost model of {model.gpu} has no {dtype} constants for {engine}",
                remedy=f"use {' or '.join(self.constants.dtypes)}, or another GPU or engine",
            )
        self.number = parse_dtype(dtype)
        self.dtype = self.number.product_dtype
        self.experts = self.constants.experts.get(self.number.expert_dtype or "")
        self.dynamic_quantisation = dynamic_quantisation
        # Everything predicted went through the end-to-end calibration of the step constants; but
        # experts that were not timed are derived from the constants of other products.
        self.evidence: Evidence = self.constants.step.provenance.evidence
        untimed = config.experts is not None and self.experts is None
        if untimed and self.evidence in ("measured", "published"):
            self.evidence = "derived"

    def subblock_us(self, subblock: Subblock, variant: str, step: Step) -> Microseconds:
        """Microseconds of one subblock with its norm, residual and all-reduce; see `LatencyModel`.

        Raises:
            InputError: the variant or the TP degree is not known, or products in the type of its
                weights are not.
        """
        parsed = parse_variant(subblock, variant)
        if isinstance(parsed, NoOp):
            return np.zeros(step.shape)
        if parsed.weights not in (None, self.dtype):
            return self._in_type(parsed.weights).subblock_us(subblock, parsed.shape, step)
        config, rows, tp = self.config, step.rows, step.tp
        hidden, head_dim = config.hidden_size, config.head_dim
        latency_us: Microseconds = self._norm(rows) + self._all_reduce(rows, tp)
        if isinstance(parsed, Gqa):
            heads = -(-config.num_heads // tp)
            kv_heads = -(-parsed.kv_heads // tp)
            latency_us = latency_us + self._gemm(rows, (heads + 2 * kv_heads) * head_dim, hidden)
            latency_us = latency_us + self._gemm(rows, hidden, heads * head_dim)
            latency_us = latency_us + self._attention(step, heads, kv_heads, parsed.window(config))
        elif isinstance(parsed, Mlp):
            width = -(-parsed.intermediate_size // tp)
            latency_us = latency_us + self._gemm(rows, 2 * width, hidden)
            latency_us = latency_us + self._gated_activation(rows, width)
            latency_us = latency_us + self._gemm(rows, hidden, width)
        elif isinstance(parsed, Moe):
            router = self._gemm(rows, parsed.experts, hidden, dtype=self.number.vector_dtype)
            latency_us = latency_us + router + self.experts_us(rows, parsed, tp)
        else:
            assert isinstance(parsed, Linear), "a variant kind without a cost"
            latency_us = latency_us + self._gemm(rows, hidden, -(-hidden // tp))
        return latency_us * self.constants.step.engine_scalar

    def outside_us(self, step: Step) -> Microseconds:
        """Microseconds of embedding, final norm, output head, sampling and the engine's own work.

        The head runs for one token of each sequence, of a prompt the last.

        Raises:
            InputError: the TP degree is not known.
        """
        config, rows, sampled, tp = self.config, step.rows, step.sampled, step.tp
        vocabulary = -(-config.vocab_size // tp)
        value_bytes = STREAM_BYTES[self.dtype]
        # Logits are read twice: for the largest, then for the sum of exponentials.
        head = (
            self._norm(sampled)
            + self._gemm(
                np.maximum(sampled, 1),
                vocabulary,
                config.hidden_size,
                dtype=self.number.vector_dtype,
            )
            + self._elementwise(2 * value_bytes * sampled * config.vocab_size)
        )
        embedding = self._elementwise(2 * value_bytes * rows * config.hidden_size)
        kernels = embedding + self._all_reduce(rows, tp) + np.where(sampled > 0, head, 0.0)
        constants = self.constants.step
        own_us = constants.engine_us(step.decoding + step.prompts, tp)
        return np.asarray(kernels * constants.engine_scalar + own_us)

    def _in_type(self, weights: str) -> AnalyticLatency:
        """The same engine where products are in another type, the KV cache in its own.

        Raises:
            InputError: there are no constants of it.
        """
        if weights not in self.constants.gemm:
            raise InputError(
                f"the cost model has no constants of products in {weights}",
                remedy=f"use {' or '.join(self.constants.gemm)}, or a profile of such variants",
            )
        typed = copy.copy(self)
        typed.dtype = weights
        return typed

    def _gemm(
        self,
        rows: _Array,
        columns: int,
        inner: int,
        *,
        dtype: str | None = None,
        groups: _Array | None = None,
    ) -> Microseconds:
        """One product, or one with each of several matrices, which share the rows."""
        chosen = dtype or self.dtype
        settings: Any = {
            "dtype": chosen,
            "sheet": self.sheet,
            "constants": self.constants.gemm[chosen],
            "quantise": self.dynamic_quantisation,
        }
        if groups is None:
            return gemm_us(rows, columns, inner, **settings)
        return grouped_gemm_us(rows, columns, inner, groups, **settings)

    def experts_us(self, rows: _Array, variant: Moe, tp: int) -> Microseconds:
        """Microseconds of the experts of so many tokens, cut along their width, without router.

        Those of a dtype that were timed as a whole have constants of their own. Else as many are
        read as a uniform router picks, tokens are copied to their experts, and what these give is
        added up by gates.
        """
        config, value_bytes = self.config, STREAM_BYTES[self.dtype]
        hidden, width = config.hidden_size, -(-variant.width_in(config) // tp)
        top_k = variant.top_k_in(config)
        if self.experts is not None:
            assert self.number.expert_dtype is not None
            return experts_us(
                rows,
                experts=variant.experts,
                top_k=top_k,
                hidden=hidden,
                width=width,
                dtype=self.number.expert_dtype,
                sheet=self.sheet,
                constants=self.experts,
            )
        routed, groups = rows * top_k, distinct_experts(variant.experts, top_k, rows)
        return np.asarray(
            self._elementwise(2 * value_bytes * routed * hidden)
            + self._gemm(routed, 2 * width, hidden, groups=groups)
            + self._gated_activation(routed, width)
            + self._gemm(routed, hidden, width, groups=groups)
            + self._elementwise(value_bytes * (routed + rows) * hidden)
        )

    def _attention(self, step: Step, heads: int, kv_heads: int, window: int | None) -> Microseconds:
        """Of the decode tokens, and of the prompts beside them, where there are any."""
        dtype = self.number.kv_dtype
        shape: dict[str, Any] = {
            "heads": heads,
            "kv_heads": kv_heads,
            "head_dim": self.config.head_dim,
            "dtype": dtype,
            "sheet": self.sheet,
        }
        decodes, prefills = step.decoding > 0, step.prompts > 0
        latency_us = np.zeros(step.shape)
        if decodes.any():
            latency_us[decodes] += decode_attention_us(
                step.decoding[decodes],
                step.decode_attended(window)[decodes],
                constants=self.constants.decode_attention[dtype],
                **shape,
            )
        if prefills.any():
            latency_us[prefills] += prefill_attention_us(
                step.prompts[prefills],
                step.prompt_tokens[prefills],
                (step.prompt_tokens + step.prompt_history(window))[prefills],
                attended=step.prompt_attended(window)[prefills],
                constants=self.constants.prefill_attention[dtype],
                **shape,
            )
        return latency_us

    def _elementwise(self, moved_bytes: _Array) -> Microseconds:
        return elementwise_us(moved_bytes, sheet=self.sheet, constants=self.constants.elementwise)

    def _norm(self, rows: _Array) -> Microseconds:
        """Residual add and RMSNorm in one kernel: two reads, two writes, one for the GEMM."""
        per_value = 3 * STREAM_BYTES[self.dtype] + BYTES_PER_VALUE[self.dtype]
        return self._elementwise(rows * self.config.hidden_size * per_value)

    def _gated_activation(self, rows: _Array, width: int) -> Microseconds:
        """SiLU(gate) x up: two reads, one write in the dtype of the next GEMM."""
        per_value = 2 * STREAM_BYTES[self.dtype] + BYTES_PER_VALUE[self.dtype]
        return self._elementwise(rows * width * per_value)

    def _all_reduce(self, rows: _Array, tp: int) -> Microseconds:
        if tp == 1:
            return np.zeros(())
        if self.constants.all_reduce is None or tp not in self.constants.all_reduce.by_tp:
            raise InputError(
                f"tensor-parallel degree {tp} is not in the cost model",
                remedy=f"use one of {', '.join(map(str, self.constants.tp_degrees))}",
            )
        message_bytes = STREAM_BYTES[self.dtype] * rows * self.config.hidden_size
        lines = self.constants.all_reduce.by_tp[tp]
        return all_reduce_us(message_bytes, tp=tp, sheet=self.sheet, lines=lines)
