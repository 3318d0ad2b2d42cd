"""The cost of every variant at every operating point, as arrays that the solver adds up.

Time and memory of an architecture are sums over its subblocks plus a part outside the blocks
(design, section 5), so that a table over variants prices every architecture.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
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
from puzzle_search.cost.serving import Share, requests_in_flight, schedule
from puzzle_search.cost.step import Step
from puzzle_search.cost.target import Target

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class OperatingPoint:
    """A batch size and a tensor-parallel degree."""

    batch: int
    tp: int


@dataclass(frozen=True, kw_only=True)
class ScenarioCost:
    """Predicted cost of one architecture in one scenario at one operating point.

    Attributes:
        scenario: lengths of the requests.
        gpu: name of the device.
        point: batch size and TP degree.
        in_flight: requests that are served or wait; the batch, unless more were asked.
        tokens_per_second_per_gpu: output tokens.
        ttft_ms: until the first token of a request, of a static batch until that of all.
        tpot_ms: mean time from a token of a request to its next.
        weights_and_kv_bytes: on each device.
        memory_bytes: with activations, on each device.
        memory_limit_bytes: of each device.
    """

    scenario: Scenario
    gpu: str
    point: OperatingPoint
    in_flight: float
    tokens_per_second_per_gpu: float
    ttft_ms: float
    tpot_ms: float
    weights_and_kv_bytes: int
    memory_bytes: int
    memory_limit_bytes: int

    @property
    def latency_ms(self) -> float:
        """From the arrival of a request, or static batch, to its last token."""
        return self.ttft_ms + self.tpot_ms * self.scenario.decode_steps

    @property
    def requests_per_second(self) -> float:
        """Requests that one replica, of all its devices, finishes."""
        return self.in_flight / self.latency_ms * 1e3

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
            "in_flight": self.in_flight,
            "tokens_per_second_per_gpu": round(self.tokens_per_second_per_gpu, 3),
            "tokens_per_second_per_user": round(1e3 / self.tpot_ms, 3) if self.tpot_ms else None,
            "ttft_ms": round(self.ttft_ms, 4),
            "tpot_ms": round(self.tpot_ms, 5),
            "memory_bytes": self.memory_bytes,
            "memory_limit_bytes": self.memory_limit_bytes,
        }


@dataclass(frozen=True, kw_only=True)
class SubblockCosts:
    """Costs of the variants of one subblock; arrays are (points, variants).

    ``prefill_us`` is the time until a request's first token, ``decode_us`` from there to its last.
    """

    variants: tuple[str, ...]
    prefill_us: Floats
    decode_us: Floats
    memory_bytes: Floats

    @property
    def total_us(self) -> Floats:
        """Until the last token."""
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
    """Costs in one scenario on one target.

    ``outside_*``, ``activation_bytes`` and ``in_flight``, the requests that are served or wait, are
    (points,).
    """

    scenario: Scenario
    target: Target
    points: tuple[OperatingPoint, ...]
    in_flight: Floats
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
        """Time outside the blocks until the last token."""
        return self.outside_prefill_us + self.outside_decode_us

    def joined(self, other: CostTable) -> CostTable:
        """With the points of another table of the same variants after its own."""

        def both(name: str) -> Floats:
            return np.concatenate([getattr(self, name), getattr(other, name)])

        def subblock(own: SubblockCosts, more: SubblockCosts) -> SubblockCosts:
            assert own.variants == more.variants
            arrays = [
                np.concatenate([getattr(part, name) for part in (own, more)])
                for name in ("prefill_us", "decode_us", "memory_bytes")
            ]
            return _subblock_costs(own.variants, arrays)

        return replace(
            self,
            points=self.points + other.points,
            in_flight=both("in_flight"),
            attention=subblock(self.attention, other.attention),
            ffn=subblock(self.ffn, other.ffn),
            outside_prefill_us=both("outside_prefill_us"),
            outside_decode_us=both("outside_decode_us"),
            outside_weight_bytes=both("outside_weight_bytes"),
            activation_bytes=both("activation_bytes"),
        )

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
        tokens = self.in_flight[index] * self.scenario.output_len / point.tp
        return ScenarioCost(
            scenario=self.scenario,
            gpu=self.target.gpu,
            point=point,
            in_flight=float(self.in_flight[index]),
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
    """Price every variant at every operating point, as the target serves.

    Raises:
        InputError: a profile does not cover a point or a variant.
    """
    widest = max((ffn_width(parse_variant("ffn", name)) for name in ffn), default=0)
    order: list[OperatingPoint] = []
    parts: list[tuple[list[Floats], list[Floats], list[Floats]]] = []
    for tp in sorted({point.tp for point in points}):
        group = [point for point in points if point.tp == tp]
        order += group
        pricing = _Pricing(
            config=config,
            target=target,
            scenario=scenario,
            batches=np.array([point.batch for point in group], dtype=np.float64),
            tp=tp,
        )
        parts.append(
            (
                pricing.subblock("attention", attention),
                pricing.subblock("ffn", ffn),
                pricing.outside(widest),
            )
        )
    attention_arrays, ffn_arrays, outside = (
        [np.concatenate(arrays) for arrays in zip(*(part[i] for part in parts), strict=True)]
        for i in range(3)
    )
    batches = np.array([point.batch for point in order], dtype=np.float64)
    return CostTable(
        scenario=scenario,
        target=target,
        points=tuple(order),
        in_flight=requests_in_flight(target.serving, batches),
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
    names: list[tuple[Subblock, str]] = [("attention", name) for name in attention]
    names += [("ffn", name) for name in ffn]
    covered: set[OperatingPoint] = set()
    for tp in {point.tp for point in points}:
        group = [point for point in points if point.tp == tp]
        inside = np.ones(len(group), dtype=bool)
        for share in schedule(target.serving, scenario, [point.batch for point in group], tp):
            taken = share.before + share.after > 0
            inside &= (profile.covers(names, share.step) | ~taken).all(axis=1)
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


@dataclass(frozen=True, kw_only=True)
class _Pricing:
    """Prices variants at some batch sizes of one TP degree."""

    config: ParentConfig
    target: Target
    scenario: Scenario
    batches: Floats
    tp: int

    @cached_property
    def _shares(self) -> list[Share]:
        return schedule(self.target.serving, self.scenario, self.batches, self.tp)

    def _summed(self, step_us: Callable[[Step], Floats]) -> tuple[Floats, Floats]:
        """Time until the first token and from there to the last, (batches,) each."""
        before, after = np.zeros(len(self.batches)), np.zeros(len(self.batches))
        for share in self._shares:
            us = step_us(share.step)
            before += (us * share.before).sum(axis=1)
            after += (us * share.after).sum(axis=1)
        return before, after

    def subblock(self, subblock: Subblock, names: Sequence[str]) -> list[Floats]:
        """Time to the first token, from there to the last, and memory, (batches, variants) each."""
        columns = []
        for name in names:
            before, after = self._summed(partial(self.target.latency.subblock_us, subblock, name))
            columns.append((before, after, self._memory(parse_variant(subblock, name))))
        return [np.stack(column, axis=1) for column in zip(*columns, strict=True)]

    def _memory(self, variant: Variant) -> Floats:
        tokens = self.batches * (self.scenario.input_len + self.scenario.output_len)
        dtype = self.target.dtype
        kv_bytes = tokens * kv_bytes_per_token(variant, self.config, dtype, self.tp)
        return weight_bytes(variant, self.config, dtype, self.tp) + kv_bytes

    def outside(self, widest_ffn: int) -> list[Floats]:
        """The same two times, weights and activations outside the blocks, (batches,) each."""
        before, after = self._summed(self.target.latency.outside_us)
        dtype = self.target.dtype
        activations = [
            activation_bytes(
                self.config,
                dtype,
                batch=int(batch),
                input_len=self.scenario.input_len,
                tp=self.tp,
                widest_ffn=widest_ffn,
                max_tokens=self.target.serving.max_tokens,
            )
            for batch in self.batches
        ]
        weights = np.full(len(self.batches), float(outside_bytes(self.config, dtype, self.tp)))
        return [before, after, weights, np.array(activations, dtype=np.float64)]
