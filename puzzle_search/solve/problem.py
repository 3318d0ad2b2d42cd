"""The search problem: damage of every choice, what it uses, and what may be used."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from puzzle_search.arch import (
    ArchitectureSpec,
    ParentConfig,
    SearchSpace,
    Subblock,
    architecture_parameters,
    embedding_parameters,
    parse_variant,
    subblock_parameters,
)
from puzzle_search.cost import CostTable
from puzzle_search.errors import InputError
from puzzle_search.solve.score_table import ScoreTable

Floats = NDArray[np.float64]
Choice = NDArray[np.intp]

# Limits of a point problem are wider by this part, so that rounding excludes nothing that keeps
# the real ones; answers are checked against these (`Problem.holds`).
_ROUNDING = 1e-12
# A choice that alone exceeds a limit is impossible, however far it goes beyond.
_IMPOSSIBLE = 2.0


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What the child must keep to; None is no limit. Memory is always limited by the device.

    Attributes:
        tokens_per_second_per_gpu: output tokens, at least.
        ttft_ms: prefill of a whole batch, at most.
        tpot_ms: mean decode step, at most.
        latency_ms: prefill and all decode steps of a batch, at most.
        parameters: of the whole child, at most.
    """

    tokens_per_second_per_gpu: float | None = None
    ttft_ms: float | None = None
    tpot_ms: float | None = None
    latency_ms: float | None = None
    parameters: int | None = None

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is not None and not value > 0:
                raise InputError(
                    f"{name} is {value}, not above zero", remedy="give a positive limit"
                )

    def asked(self) -> dict[str, float]:
        """The limits that are set."""
        return {name: value for name, value in vars(self).items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class PointProblem:
    """The problem at one operating point: a multiple-choice knapsack.

    A choice is a pair of variants; what it uses does not depend on the layer.

    Attributes:
        damage: (layers, choices); infinite where a layer does not allow the choice.
        attention_of: (choices,), index of the choice's attention variant.
        ffn_of: (choices,), index of its FFN variant.
        attention_usage: (resources, attention variants), in units of the resource's limit.
        ffn_usage: (resources, FFN variants), likewise.
        limits: (resources,); 1, 0 or -1 up to rounding: what the part outside the blocks leaves,
            less than nothing where it alone exceeds the limit.
    """

    damage: Floats
    attention_of: Choice
    ffn_of: Choice
    attention_usage: Floats
    ffn_usage: Floats
    limits: Floats

    @property
    def usage(self) -> Floats:
        """What each choice uses, (resources, choices)."""
        total: Floats = self.attention_usage[:, self.attention_of] + self.ffn_usage[:, self.ffn_of]
        return total

    def used(self, choice: Choice) -> Floats:
        """What a choice per layer uses of each resource."""
        total: Floats = self.usage[:, choice].sum(axis=1)
        return total

    def tightened(self, margin: float) -> PointProblem:
        """The same problem with less of each resource, as a part of its limit."""
        return replace(self, limits=self.limits - margin)

    def normalised(self) -> tuple[PointProblem, float, float]:
        """Damage above the least of each layer, in units of the most that it can sum to.

        With it, the sum of the least and the unit. Tolerances then mean the same for scores of
        any size and sign.
        """
        least = self.damage.min(axis=1, keepdims=True)
        above = self.damage - least
        spread = float(np.where(np.isfinite(above), above, 0.0).max(axis=1).sum()) or 1.0
        return replace(self, damage=above / spread), float(least.sum()), spread


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Damage and cost of every (attention, FFN) pair in every layer, with limits."""

    config: ParentConfig
    pairs: tuple[tuple[str, str], ...]
    damage: Floats
    cost: CostTable
    limits: Limits
    score_evidence: str

    @classmethod
    def build(
        cls,
        config: ParentConfig,
        space: SearchSpace,
        scores: ScoreTable,
        cost: CostTable,
        limits: Limits,
        *,
        metric: str = "kl",
    ) -> Problem:
        """Join scores and costs.

        Raises:
            InputError: the score table lacks a replacement that the space allows.
        """
        pairs = [
            (attention, ffn)
            for attention in space.all_variants("attention")
            for ffn in space.all_variants("ffn")
        ]
        return cls(
            config=config,
            pairs=tuple(pairs),
            damage=scores.damage_matrix(space, pairs, config, metric),
            cost=cost,
            limits=limits,
            score_evidence=scores.evidence,
        )

    @property
    def num_layers(self) -> int:
        """Layers to choose for."""
        return len(self.damage)

    def spec(self, choice: Choice) -> ArchitectureSpec:
        """The architecture of a column per layer."""
        return ArchitectureSpec.of(self.config.name, [self.pairs[column] for column in choice])

    def score(self, choice: Choice) -> float:
        """Summed damage of a column per layer."""
        return float(self.damage[np.arange(self.num_layers), choice].sum())

    def at(self, index: int) -> PointProblem:
        """The problem at operating point ``index``."""
        cost, limits = self.cost, self.limits
        attention, ffn = cost.attention, cost.ffn
        steps_us = cost.scenario.decode_steps * 1e3
        # One row a limit: attention costs, FFN costs, and what is left beside the outside part.
        time = (attention.total_us[index], ffn.total_us[index])
        rows: list[tuple[Floats, Floats, float]] = [
            (
                attention.memory_bytes[index],
                ffn.memory_bytes[index],
                cost.target.memory_limit_bytes - cost.outside_memory_bytes[index],
            )
        ]
        if limits.tokens_per_second_per_gpu is not None:
            longest = cost.time_limit_us(limits.tokens_per_second_per_gpu)[index]
            rows.append((*time, longest - cost.outside_us[index]))
        if limits.latency_ms is not None:
            rows.append((*time, limits.latency_ms * 1e3 - cost.outside_us[index]))
        if limits.ttft_ms is not None:
            left = limits.ttft_ms * 1e3 - cost.outside_prefill_us[index]
            rows.append((attention.prefill_us[index], ffn.prefill_us[index], left))
        if limits.tpot_ms is not None:
            left = limits.tpot_ms * steps_us - cost.outside_decode_us[index]
            rows.append((attention.decode_us[index], ffn.decode_us[index], left))
        if limits.parameters is not None:
            left = limits.parameters - float(embedding_parameters(self.config))
            rows.append((self._parameters("attention"), self._parameters("ffn"), left))
        return PointProblem(
            damage=self.damage,
            attention_of=attention.columns([pair[0] for pair in self.pairs]),
            ffn_of=ffn.columns([pair[1] for pair in self.pairs]),
            attention_usage=np.stack([_parts(row, left) for row, _, left in rows]),
            ffn_usage=np.stack([_parts(row, left) for _, row, left in rows]),
            limits=np.array([np.sign(left) + _ROUNDING for _, _, left in rows]),
        )

    def holds(self, spec: ArchitectureSpec, index: int) -> bool:
        """Whether an architecture keeps every limit at operating point ``index``, as reported."""
        cost, limits = self.cost.cost(spec, index), self.limits
        return (
            cost.memory_bytes <= cost.memory_limit_bytes
            and cost.tokens_per_second_per_gpu >= (limits.tokens_per_second_per_gpu or 0.0)
            and cost.ttft_ms <= (limits.ttft_ms or np.inf)
            and cost.tpot_ms <= (limits.tpot_ms or np.inf)
            and cost.latency_ms <= (limits.latency_ms or np.inf)
            and (
                limits.parameters is None
                or architecture_parameters(spec, self.config) <= limits.parameters
            )
        )

    def _parameters(self, subblock: Subblock) -> Floats:
        costs = self.cost.attention if subblock == "attention" else self.cost.ffn
        variants = [parse_variant(subblock, name) for name in costs.variants]
        return np.array([float(subblock_parameters(v, self.config)) for v in variants])


def _parts(amounts: Floats, left: float) -> Floats:
    """Amounts as parts of what is left of a resource."""
    with np.errstate(over="ignore"):
        parts: Floats = np.minimum(amounts / (abs(left) or 1.0), _IMPOSSIBLE)
    return parts
