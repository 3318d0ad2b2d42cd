"""The cost of every variant at every operating point, as arrays that the solver adds up.

Time and memory of an architecture are sums over its subblocks plus a part outside the blocks
(design, section 5), so that a table over variants prices every architecture.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from puzzle_search.arch import (
    ArchitectureSpec,
    ParentConfig,
    Subblock,
    Variant,
    parse_variant,
)
from puzzle_search.cost.memory import (
    activation_bytes,
    ffn_width,
    kv_bytes_per_token,
    outside_bytes,
    weight_bytes,
)
from puzzle_search.cost.scenario import Scenario
from puzzle_search.cost.target import Target

Floats = NDArray[np.float64]

# The decode time of a sequence is a sum over its growing context, which latencies follow almost
# linearly: a midpoint rule of this many nodes stands for it.
_CONTEXT_NODES = 8


@dataclass(frozen=True, kw_only=True)
class OperatingPoint:
    """A batch size and a tensor-parallel degree."""

    batch: int
    tp: int


@dataclass(frozen=True, kw_only=True)
class ScenarioCost:
    """Predicted cost of one architecture in one scenario at one operating point."""

    scenario: Scenario
    gpu: str
    point: OperatingPoint
    tokens_per_second_per_gpu: float
    ttft_ms: float
    tpot_ms: float
    weights_and_kv_bytes: int
    memory_bytes: int
    memory_limit_bytes: int

    @property
    def latency_ms(self) -> float:
        """Prefill and all decode steps of a batch."""
        return self.ttft_ms + self.tpot_ms * self.scenario.decode_steps

    @property
    def tokens_per_second_per_user(self) -> float:
        """Output tokens of one sequence while it decodes."""
        return 1e3 / self.tpot_ms if self.tpot_ms else math.inf

    def as_dict(self) -> dict[str, Any]:
        """The cost as it is written in results."""
        return {
            "input_len": self.scenario.input_len,
            "output_len": self.scenario.output_len,
            "gpu": self.gpu,
            "tp": self.point.tp,
            "batch": self.point.batch,
            "tokens_per_second_per_gpu": round(self.tokens_per_second_per_gpu, 3),
            "tokens_per_second_per_user": round(1e3 / self.tpot_ms, 3) if self.tpot_ms else None,
            "ttft_ms": round(self.ttft_ms, 4),
            "tpot_ms": round(self.tpot_ms, 5),
            "memory_bytes": self.memory_bytes,
            "memory_limit_bytes": self.memory_limit_bytes,
        }


@dataclass(frozen=True, kw_only=True)
class SubblockCosts:
    """Costs of the variants of one subblock; arrays are (points, variants)."""

    variants: tuple[str, ...]
    prefill_us: Floats
    decode_us: Floats
    memory_bytes: Floats

    @property
    def total_us(self) -> Floats:
        """Prefill and all decode steps."""
        return self.prefill_us + self.decode_us

    def columns(self, names: Sequence[str]) -> NDArray[np.intp]:
        """Column of each named variant."""
        position = {name: index for index, name in enumerate(self.variants)}
        return np.array([position[name] for name in names])

    def counts(self, names: Sequence[str]) -> NDArray[np.intp]:
        """How often each variant is named."""
        return np.bincount(self.columns(names), minlength=len(self.variants))


@dataclass(frozen=True, kw_only=True)
class CostTable:
    """Costs in one scenario on one target; ``outside_*`` arrays are (points,)."""

    scenario: Scenario
    target: Target
    points: tuple[OperatingPoint, ...]
    attention: SubblockCosts
    ffn: SubblockCosts
    outside_prefill_us: Floats
    outside_decode_us: Floats
    outside_weight_bytes: Floats
    activation_bytes: Floats

    @property
    def outside_memory_bytes(self) -> Floats:
        """Memory outside the blocks: embedding, head, and the largest live activations."""
        return self.outside_weight_bytes + self.activation_bytes

    @property
    def outside_us(self) -> Floats:
        """Time outside the blocks, prefill and all decode steps."""
        return self.outside_prefill_us + self.outside_decode_us

    def cost(self, spec: ArchitectureSpec, index: int) -> ScenarioCost:
        """Cost of an architecture at one operating point."""
        # By counts, so that the order of the blocks does not change the last digit.
        attention = self.attention.counts([block.attention for block in spec.blocks])
        ffn = self.ffn.counts([block.ffn for block in spec.blocks])
        prefill_us = self.outside_prefill_us[index] + (
            attention @ self.attention.prefill_us[index] + ffn @ self.ffn.prefill_us[index]
        )
        decode_us = self.outside_decode_us[index] + (
            attention @ self.attention.decode_us[index] + ffn @ self.ffn.decode_us[index]
        )
        kept = self.outside_weight_bytes[index] + (
            attention @ self.attention.memory_bytes[index] + ffn @ self.ffn.memory_bytes[index]
        )
        point = self.points[index]
        tokens = point.batch * self.scenario.output_len / point.tp
        return ScenarioCost(
            scenario=self.scenario,
            gpu=self.target.gpu,
            point=point,
            tokens_per_second_per_gpu=float(tokens * 1e6 / (prefill_us + decode_us)),
            ttft_ms=float(prefill_us / 1e3),
            tpot_ms=float(decode_us / max(1, self.scenario.decode_steps) / 1e3),
            weights_and_kv_bytes=int(np.ceil(kept)),
            memory_bytes=int(np.ceil(kept + self.activation_bytes[index])),
            memory_limit_bytes=self.target.memory_limit_bytes,
        )

    def best_cost(self, spec: ArchitectureSpec) -> ScenarioCost | None:
        """Cost at the operating point of highest throughput that fits in memory, if any fits."""
        costs = (self.cost(spec, index) for index in range(len(self.points)))
        fitting = [cost for cost in costs if cost.memory_bytes <= cost.memory_limit_bytes]
        return max(fitting, key=lambda cost: cost.tokens_per_second_per_gpu, default=None)


def build_cost_table(
    config: ParentConfig,
    target: Target,
    scenario: Scenario,
    points: Sequence[OperatingPoint],
    *,
    attention: Sequence[str],
    ffn: Sequence[str],
) -> CostTable:
    """Price every variant at every operating point.

    Raises:
        InputError: a profile does not cover a point or a variant.
    """
    widest = max((ffn_width(parse_variant("ffn", name)) for name in ffn), default=0)
    order: list[OperatingPoint] = []
    parts: list[tuple[list[Floats], list[Floats], list[Floats]]] = []
    for tp in sorted({point.tp for point in points}):
        group = [point for point in points if point.tp == tp]
        order += group
        batches = np.array([point.batch for point in group], dtype=np.float64)
        parts.append(
            (
                _subblock_part("attention", attention, config, target, scenario, batches, tp),
                _subblock_part("ffn", ffn, config, target, scenario, batches, tp),
                _outside_part(config, target, scenario, batches, tp, widest),
            )
        )
    attention_arrays, ffn_arrays, outside = (
        [np.concatenate(arrays) for arrays in zip(*(part[i] for part in parts), strict=True)]
        for i in range(3)
    )
    return CostTable(
        scenario=scenario,
        target=target,
        points=tuple(order),
        attention=_subblock_costs(attention, attention_arrays),
        ffn=_subblock_costs(ffn, ffn_arrays),
        outside_prefill_us=outside[0],
        outside_decode_us=outside[1],
        outside_weight_bytes=outside[2],
        activation_bytes=outside[3],
    )


def covered_points(
    target: Target,
    scenario: Scenario,
    points: Sequence[OperatingPoint],
    *,
    attention: Sequence[str],
    ffn: Sequence[str],
) -> list[OperatingPoint]:
    """The operating points at which every variant can be priced in a scenario.

    A profile stops where a batch over a context was not measured, mostly for want of memory. Where
    it covers no point at all, all are returned, and pricing them says what is missing.

    Raises:
        InputError: a variant was not measured at all.
    """
    profile = target.measured
    if profile is None:
        return list(points)
    contexts = _decode_contexts(scenario)
    names: list[tuple[Subblock, str]] = [("attention", name) for name in attention]
    names += [("ffn", name) for name in ffn]
    covered: set[OperatingPoint] = set()
    for tp in {point.tp for point in points}:
        group = [point for point in points if point.tp == tp]
        batch = np.array([point.batch for point in group], dtype=np.float64)
        prefill: dict[str, Any] = {"batch": batch, "tokens": scenario.input_len, "tp": tp}
        decode: dict[str, Any] = {"batch": batch[:, None], "tokens": 1, "tp": tp}
        inside = profile.covers_outside("prefill", **prefill)
        inside &= profile.covers_outside("decode", **decode).all(axis=1)
        for subblock, name in names:
            inside &= profile.covers(
                subblock, name, "prefill", context=scenario.input_len, **prefill
            )
            inside &= profile.covers(subblock, name, "decode", context=contexts, **decode).all(1)
        covered |= {point for point, is_inside in zip(group, inside, strict=True) if is_inside}
    return [point for point in points if point in covered] or list(points)


def _subblock_costs(names: Sequence[str], arrays: list[Floats]) -> SubblockCosts:
    prefill_us, decode_us, memory_bytes = arrays
    return SubblockCosts(
        variants=tuple(names),
        prefill_us=prefill_us,
        decode_us=decode_us,
        memory_bytes=memory_bytes,
    )


def _decode_contexts(scenario: Scenario) -> Floats:
    """Midpoints of equal parts of the contexts that decode steps see."""
    nodes = max(1, min(_CONTEXT_NODES, scenario.decode_steps))
    middle = (np.arange(nodes) + 0.5) / nodes
    return scenario.input_len + 0.5 + middle * scenario.decode_steps


def _subblock_part(
    subblock: Subblock,
    names: Sequence[str],
    config: ParentConfig,
    target: Target,
    scenario: Scenario,
    batches: Floats,
    tp: int,
) -> list[Floats]:
    """Prefill time, decode time and memory of all variants, (batches, variants) each."""
    contexts = _decode_contexts(scenario)
    prefill, decode, memory = [], [], []
    for name in names:
        variant = parse_variant(subblock, name)
        prefill.append(
            target.latency.subblock_us(
                subblock,
                name,
                "prefill",
                batch=batches,
                tokens=scenario.input_len,
                context=scenario.input_len,
                tp=tp,
            )
        )
        step_us = target.latency.subblock_us(
            subblock, name, "decode", batch=batches[:, None], tokens=1, context=contexts, tp=tp
        )
        decode.append(step_us.mean(axis=1) * scenario.decode_steps)
        memory.append(_memory(variant, config, target, scenario, batches, tp))
    return [np.stack(columns, axis=1) for columns in (prefill, decode, memory)]


def _memory(
    variant: Variant,
    config: ParentConfig,
    target: Target,
    scenario: Scenario,
    batches: Floats,
    tp: int,
) -> Floats:
    tokens = batches * (scenario.input_len + scenario.output_len)
    weights = weight_bytes(variant, config, target.dtype, tp)
    return weights + tokens * kv_bytes_per_token(variant, config, target.dtype, tp)


def _outside_part(
    config: ParentConfig,
    target: Target,
    scenario: Scenario,
    batches: Floats,
    tp: int,
    widest_ffn: int,
) -> list[Floats]:
    prefill = target.latency.outside_us("prefill", batch=batches, tokens=scenario.input_len, tp=tp)
    decode = target.latency.outside_us("decode", batch=batches, tokens=1, tp=tp)
    activations = [
        activation_bytes(
            config,
            target.dtype,
            batch=int(batch),
            input_len=scenario.input_len,
            tp=tp,
            widest_ffn=widest_ffn,
        )
        for batch in batches
    ]
    return [
        prefill,
        decode * scenario.decode_steps,
        np.full(len(batches), float(outside_bytes(config, target.dtype, tp))),
        np.array(activations, dtype=np.float64),
    ]
