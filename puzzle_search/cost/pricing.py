"""What every variant costs at every operating point: the table that the solver adds up."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np

from puzzle_search.arch import (
    ParentConfig,
    Subblock,
    Variant,
    ffn_channels,
    parse_variant,
    routed_copies,
)
from puzzle_search.cost.memory import (
    activation_bytes,
    kv_bytes,
    outside_bytes,
    weight_bytes,
)
from puzzle_search.cost.scenario import Scenario
from puzzle_search.cost.serving import Share, requests_in_flight, schedule
from puzzle_search.cost.step import Step
from puzzle_search.cost.table import CostTable, Floats, OperatingPoint, SubblockCosts
from puzzle_search.cost.target import Target


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
    ffns = [parse_variant("ffn", name) for name in ffn]
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
                pricing.outside(ffns),
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
        attention=SubblockCosts.of(attention, attention_arrays),
        ffn=SubblockCosts.of(ffn, ffn_arrays),
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
        dtype, tokens = self.target.dtype, self.scenario.tokens
        of_sequence = kv_bytes(variant, self.config, dtype, self.tp, tokens)
        return weight_bytes(variant, self.config, dtype, self.tp) + self.batches * of_sequence

    def outside(self, ffns: Sequence[Variant]) -> list[Floats]:
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
                widest_ffn=max((ffn_channels(ffn, self.config) for ffn in ffns), default=0),
                routed=max((routed_copies(ffn, self.config) for ffn in ffns), default=0),
                max_tokens=self.target.serving.max_tokens,
            )
            for batch in self.batches
        ]
        weights = np.full(len(self.batches), float(outside_bytes(self.config, dtype, self.tp)))
        return [before, after, weights, np.array(activations, dtype=np.float64)]
