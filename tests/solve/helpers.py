"""Small search problems with known costs, and their answers by enumeration."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from puzzle_search.arch import ParentConfig, SearchSpace
from puzzle_search.choices import ServingMode
from puzzle_search.cost import CostTable, OperatingPoint, Scenario, Target, build_cost_table
from puzzle_search.cost.memory import parse_dtype
from puzzle_search.cost.serving import Serving
from puzzle_search.cost.step import Step
from puzzle_search.solve import ChildLimits, Limits, ScoreRow, ScoreTable

SIDECAR = {
    "format": "puzzle-search.scores/1",
    "package_version": "0.1.0",
    "parent": "tiny",
    "evidence": "reconstructed",
    "data": "none",
    "made_by": "tests",
}


def seeds(quick: int, thorough: int) -> list[Any]:
    """Seeds of a test, of which all but a few are run with the slow tests."""
    slow = [pytest.param(seed, marks=pytest.mark.slow) for seed in range(quick, thorough)]
    return [*range(quick), *slow]


def tiny_config(layers: int = 4, **changes: Any) -> ParentConfig:
    """A Llama with 4 query heads, 4 KV heads and FFN width 64."""
    raw = {
        "model_type": "llama",
        "hidden_size": 32,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "intermediate_size": 64,
        "vocab_size": 50,
        "max_position_embeddings": 256,
        **changes,
    }
    return ParentConfig.from_dict(raw, name="tiny")


@dataclass(frozen=True)
class SeededLatency:
    """Latencies affine in batch, tokens and context, with coefficients drawn from a seed."""

    seed: int = 0
    evidence: str = "published"

    def _coefficients(self, *key: object) -> np.ndarray:
        entropy = [self.seed, *"|".join(map(str, key)).encode()]
        return np.random.default_rng(entropy).uniform(0.5, 2.0, 3)

    def subblock_us(self, subblock: str, variant: str, step: Step) -> np.ndarray:
        if variant == "no_op":
            return np.zeros(step.shape)
        size = 1.0 if variant == "linear" else float(variant.split("_")[1]) ** 0.5
        total = np.zeros(step.shape)
        for phase, batch, tokens, context in (
            ("prefill", step.prompts, step.prompt_tokens, step.prompt_context),
            ("decode", step.decoding, 1, step.decode_context),
        ):
            a, b, c = self._coefficients(subblock, variant, phase)
            grows = 0.01 * c * context if subblock == "attention" else 0.0
            us = size * (20 * a + batch * (b * tokens + grows)) / step.tp + 5.0 * (step.tp > 1)
            total += np.where(batch > 0, us, 0.0)
        return total

    def outside_us(self, step: Step) -> np.ndarray:
        total = np.zeros(step.shape)
        for phase, batch, tokens in (
            ("prefill", step.prompts, step.prompt_tokens), ("decode", step.decoding, 1),
        ):  # fmt: skip
            a, b, _ = self._coefficients("outside", phase)
            total += np.where(batch > 0, 10 * a + 0.1 * b * batch * tokens / step.tp, 0.0)
        return total


def rows_of(values: dict[tuple[int, str, str], float], metric: str = "kl") -> list[ScoreRow]:
    """Rows of (layer, attention, ffn) -> damage."""
    return [
        ScoreRow(
            first_layer=layer,
            last_layer=layer,
            attention=attention,
            ffn=ffn,
            metric=metric,
            value=value,
            stderr=0.0,
            tokens=1,
        )
        for (layer, attention, ffn), value in values.items()
    ]


def random_scores(
    config: ParentConfig,
    space: SearchSpace,
    rng: np.random.Generator,
    *,
    low: float = 0.0,
    high: float = 1.0,
) -> ScoreTable:
    """A composed row for some pairs and single rows for all replacements."""
    values: dict[tuple[int, str, str], float] = {}
    own = {"attention": config.attention, "ffn": config.ffn}
    for layer in range(config.num_layers):
        attention = [v for v in space.all_variants("attention") if v != own["attention"]]
        ffn = [v for v in space.all_variants("ffn") if v != own["ffn"]]
        values |= {(layer, v, ""): rng.uniform(low, high) for v in attention}
        values |= {(layer, "", v): rng.uniform(low, high) for v in ffn}
        for pair in itertools.product(attention, ffn):
            if rng.random() < 0.3:
                values[layer, *pair] = rng.uniform(low, max(high, 1.5 * high))
    return ScoreTable(rows_of(values), SIDECAR)


def random_space(config: ParentConfig, rng: np.random.Generator) -> SearchSpace:
    """Up to 3 attention and 3 FFN variants; some layers allow fewer."""
    attention = ["gqa_4", *rng.permutation(["gqa_2", "gqa_1", "linear", "no_op"])[:2].tolist()]
    ffn = ["mlp_64", *rng.permutation(["mlp_32", "mlp_16", "linear", "no_op"])[:2].tolist()]
    space = SearchSpace.uniform(config, attention=attention, ffn=ffn)
    layers = list(zip(space.attention, space.ffn, strict=True))
    for layer in range(1, config.num_layers):
        if rng.random() < 0.3:
            layers[layer] = (space.attention[0][: rng.integers(1, 4)], space.ffn[0][:2])
    return SearchSpace(
        attention=tuple(pair[0] for pair in layers), ffn=tuple(pair[1] for pair in layers)
    )


def table_of(
    config: ParentConfig,
    space: SearchSpace,
    points: Sequence[OperatingPoint],
    *,
    seed: int = 0,
    scenario: str = "16/9",
    memory_limit_bytes: int = 10**12,
    mode: ServingMode = "static",
) -> CostTable:
    """Costs by ``SeededLatency``."""
    target = Target(
        gpu="test",
        engine="test",
        latency=SeededLatency(seed),  # type: ignore[arg-type]
        memory_limit_bytes=memory_limit_bytes,
        dtype=parse_dtype("bf16"),
        batches=tuple(sorted({point.batch for point in points})),
        tp_degrees=tuple(sorted({point.tp for point in points})),
        serving=Serving(mode=mode),
    )
    return build_cost_table(
        config,
        target,
        Scenario.parse(scenario),
        points,
        attention=space.all_variants("attention"),
        ffn=space.all_variants("ffn"),
    )


@dataclass(frozen=True)
class Priced:
    """Every architecture of a small problem at every operating point, priced by explicit sums.

    Arrays are (points, architectures), ``damage`` and ``parameters`` (architectures,).
    """

    damage: np.ndarray
    parameters: np.ndarray
    memory_bytes: np.ndarray
    ttft_ms: np.ndarray
    tpot_ms: np.ndarray
    throughput: np.ndarray

    def allowed(
        self, limits: Limits, memory_limit_bytes: int, child: ChildLimits | None = None
    ) -> np.ndarray:
        """Which (point, architecture) keep the limits."""
        keep = self.memory_bytes <= memory_limit_bytes
        parameters = None if child is None else child.parameters
        if limits.tokens_per_second_per_gpu is not None:
            keep &= self.throughput >= limits.tokens_per_second_per_gpu
        if limits.ttft_ms is not None:
            keep &= self.ttft_ms <= limits.ttft_ms
        if limits.tpot_ms is not None:
            keep &= self.tpot_ms <= limits.tpot_ms
        if limits.latency_ms is not None:
            keep &= self.latency_ms <= limits.latency_ms
        if limits.tokens_per_second_per_user is not None:
            keep &= 1e3 / self.tpot_ms >= limits.tokens_per_second_per_user
        if parameters is not None:
            keep &= (self.parameters <= parameters)[None]
        return keep

    @property
    def latency_ms(self) -> np.ndarray:
        """Prefill and all decode steps (the scenario of these tests has 8)."""
        return self.ttft_ms + 8 * self.tpot_ms


def price_all(
    config: ParentConfig, space: SearchSpace, scores: ScoreTable, cost: CostTable
) -> Priced:
    """Enumerate from the definitions."""
    assert cost.scenario.output_len == 9
    known = {(r.first_layer, r.attention, r.ffn): r.value for r in scores.rows}

    def damage(layer: int, attention: str, ffn: str) -> float:
        a = "" if attention == "gqa_4" else attention
        f = "" if ffn == "mlp_64" else ffn
        if (layer, a, f) in known:
            return known[layer, a, f]
        return (known[layer, a, ""] if a else 0.0) + (known[layer, "", f] if f else 0.0)

    def parameters(attention: str, ffn: str) -> int:
        kind, _, size = attention.partition("_")
        count = {"linear": 32 * 32 + 32, "no": 0}.get(kind)
        if count is None:
            count = 2 * 32 * 32 + 2 * 32 * 8 * int(size) + 32
        kind, _, size = ffn.partition("_")
        width = {"linear": 32 * 32 + 32, "no": 0}.get(kind)
        return count + (3 * 32 * int(size) + 32 if width is None else width)

    per_layer = [
        list(itertools.product(space.attention[layer], space.ffn[layer]))
        for layer in range(config.num_layers)
    ]
    scalar = [
        [[damage(layer, *pair), parameters(*pair)] for pair in pairs]
        for layer, pairs in enumerate(per_layer)
    ]
    at = {name: i for i, name in enumerate(cost.attention.variants)}
    ft = {name: i for i, name in enumerate(cost.ffn.variants)}
    arrays = []
    for pairs in per_layer:
        a, f = [at[p[0]] for p in pairs], [ft[p[1]] for p in pairs]
        arrays.append(
            np.stack(
                [
                    getattr(cost.attention, name)[:, a] + getattr(cost.ffn, name)[:, f]
                    for name in ("prefill_us", "decode_us", "memory_bytes")
                ]
            )
        )
    total = np.zeros((3, len(cost.points), 1))
    sums = np.zeros((2, 1))
    for extra, more in zip(arrays, scalar, strict=True):
        total = (total[..., :, None] + extra[..., None, :]).reshape(3, len(cost.points), -1)
        sums = (sums[:, :, None] + np.array(more).T[:, None, :]).reshape(2, -1)
    prefill = total[0] + cost.outside_prefill_us[:, None]
    decode = total[1] + cost.outside_decode_us[:, None]
    memory = total[2] + (cost.outside_weight_bytes + cost.activation_bytes)[:, None]
    tokens = (cost.in_flight * 9 / [p.tp for p in cost.points])[:, None]
    return Priced(
        damage=sums[0],
        parameters=sums[1] + 2 * 50 * 32 + 32,
        memory_bytes=memory,
        ttft_ms=prefill / 1e3,
        tpot_ms=decode / 8 / 1e3,
        throughput=tokens * 1e6 / (prefill + decode),
    )
