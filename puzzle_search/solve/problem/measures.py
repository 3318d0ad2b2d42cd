"""What is added up over the blocks of a child: times, bytes, parameters, damage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from puzzle_search.arch import (
    ParentConfig,
    Subblock,
    embedding_parameters,
    kept_tokens,
    kv_values_per_token,
    parse_variant,
    subblock_parameters,
)
from puzzle_search.cost import CostTable
from puzzle_search.solve.problem.items import Floats, Items, Selection


@dataclass(frozen=True, kw_only=True)
class Measure:
    """A sum over attention variants, FFN variants and items, and a part that no choice changes.

    Attributes:
        name: with its unit.
        scenario: number of the scenario whose operating points are the first axis; None where
            the measure does not depend on it and the axis has length 1.
        attention: (points, attention variants).
        ffn: (points, FFN variants).
        items: (items,), what depends on the layer too.
        outside: (points,).
    """

    name: str
    scenario: int | None
    attention: Floats
    ffn: Floats
    items: Floats | None
    outside: Floats

    def of(self, items: Items, selection: Selection) -> Floats:
        """(points,), the measure of a selection."""
        attention = np.bincount(items.attention[selection], minlength=self.attention.shape[1])
        ffn = np.bincount(items.ffn[selection], minlength=self.ffn.shape[1])
        total: Floats = self.outside + self.attention @ attention + self.ffn @ ffn
        return total if self.items is None else total + self.items[selection].sum()


@dataclass(frozen=True, kw_only=True)
class Bound:
    """A measure is at most some value.

    Attributes:
        measure: what is bounded.
        at_most: its largest value.
        limit: what was asked: the name of a limit, or the text of a linear one.
        turned: whether the measure is the negative of what was asked to be at least something.
        margin: part of the value that was asked by which ``at_most`` keeps away from it.
    """

    measure: Measure
    at_most: float
    limit: str
    turned: bool = False
    margin: float = 0.0


def scenario_measures(table: CostTable, scenario: int) -> dict[str, Measure]:
    """Memory and times in one scenario, by name."""
    tokens = table.in_flight / np.array([point.tp for point in table.points])
    tokens = tokens * table.scenario.output_len
    steps = max(1, table.scenario.decode_steps)
    attention, ffn = table.attention, table.ffn
    parts: dict[str, tuple[Floats, Floats, Floats, float | Floats]] = {
        "memory_bytes": (attention.memory_bytes, ffn.memory_bytes, table.outside_memory_bytes, 1.0),
        "us_per_token": (attention.total_us, ffn.total_us, table.outside_us, tokens),
        "us_per_request": (
            attention.total_us,
            ffn.total_us,
            table.outside_us,
            table.in_flight,
        ),
        "latency_ms": (attention.total_us, ffn.total_us, table.outside_us, 1e3),
        "ttft_ms": (attention.prefill_us, ffn.prefill_us, table.outside_prefill_us, 1e3),
        "tpot_ms": (attention.decode_us, ffn.decode_us, table.outside_decode_us, 1e3 * steps),
    }
    measures = {}
    for name, (of_attention, of_ffn, outside, unit) in parts.items():
        units = np.broadcast_to(unit, outside.shape)
        measures[name] = Measure(
            name=name,
            scenario=scenario,
            attention=of_attention / units[:, None],
            ffn=of_ffn / units[:, None],
            items=None,
            outside=outside / units,
        )
    return measures


def child_measures(
    config: ParentConfig,
    attention: Sequence[str],
    ffn: Sequence[str],
    *,
    kv_bytes: int,
    tokens: int,
) -> dict[str, Measure]:
    """Parameters, and bytes of KV cache per token over all devices, of the whole child.

    Args:
        config: the parent.
        attention: variants.
        ffn: variants.
        kv_bytes: of a cached number.
        tokens: of the sequences whose cache is meant, which a window bounds.
    """

    def parameters(subblock: Subblock, names: Sequence[str]) -> Floats:
        variants = (parse_variant(subblock, name) for name in names)
        return np.array([[float(subblock_parameters(v, config)) for v in variants]])

    kv = [
        kv_bytes * kv_values_per_token(v, config) * kept_tokens(v, config, tokens) / tokens
        for v in (parse_variant("attention", name) for name in attention)
    ]
    return {
        "parameters": Measure(
            name="parameters",
            scenario=None,
            attention=parameters("attention", attention),
            ffn=parameters("ffn", ffn),
            items=None,
            outside=np.array([float(embedding_parameters(config))]),
        ),
        "kv_bytes_per_token": Measure(
            name="kv_bytes_per_token",
            scenario=None,
            attention=np.array([kv], dtype=np.float64),
            ffn=np.zeros((1, len(ffn))),
            items=None,
            outside=np.zeros(1),
        ),
    }


def item_measure(
    name: str, amounts: Floats, attention: Sequence[str], ffn: Sequence[str], outside: float = 0.0
) -> Measure:
    """A measure that is told for each item: damage, or a table that was imported."""
    return Measure(
        name=name,
        scenario=None,
        attention=np.zeros((1, len(attention))),
        ffn=np.zeros((1, len(ffn))),
        items=amounts,
        outside=np.array([outside]),
    )
