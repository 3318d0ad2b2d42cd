"""Order of the 54 block variants of Llama-70B by cost: the model against the measured tables.

The truth is the sum of measured operator timings, interpolated here from the tables (linear in the
logarithms), never from the fitted model. Norms are in no table, so that neither side has them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.interpolate import RegularGridInterpolator
from scipy.stats import kendalltau

from puzzle_search.arch import Gqa, Mlp, NoOp, ParentConfig, parse_variant
from puzzle_search.cost.fitting.operator_tables import OperatorTables
from puzzle_search.cost.memory import parse_dtype
from puzzle_search.cost.modelled.constants import EngineConstants, Sheet
from puzzle_search.cost.modelled.operators import (
    all_reduce_us,
    decode_attention_us,
    gemm_us,
    prefill_attention_us,
)
from puzzle_search.cost.scenario import Scenario
from puzzle_search.errors import InputError

Floats = NDArray[np.float64]

SCENARIOS = ("128/128", "128/1024", "128/4096", "2048/128", "2048/2048")
TP_DEGREES = (1, 2, 4)
BATCH = 64
HEAD_DIM = 128
_CHUNK_TOKENS = 8192
_SPIKE = 1.5
_CONTEXT_NODES = 8


class Operators(Protocol):
    """Microseconds of operators on one device, from wherever, for so many sequences."""

    batch: int

    def gemm(self, rows: int, columns: int, inner: int) -> float:
        """Rows x inner by inner x columns."""
        ...

    def prefill(self, tokens: int, heads: int, kv_heads: int) -> float:
        """Causal attention of the whole batch's prompts."""
        ...

    def decode(self, context: Floats, heads: int, kv_heads: int) -> Floats:
        """Attention of one step at each context."""
        ...

    def all_reduce(self, elements: int, tp: int) -> float:
        """Among ``tp`` devices."""
        ...


class MeasuredOperators:
    """Timings of one engine, GPU and dtype; with ``spikes``, single slow ones stay as they are."""

    def __init__(
        self, tables: OperatorTables, dtype: str, hidden: int, *, spikes: bool = True
    ) -> None:
        rows = tables.gemm_rows(dtype)
        rows = rows if spikes else without_spikes(rows)
        rows = rows[rows["m"] <= _CHUNK_TOKENS]
        self._wide = _interpolator(rows[rows["k"] == hidden], ("m", "n"))
        self._deep = _interpolator(rows[rows["n"] == hidden], ("m", "k"))
        self._hidden = hidden
        kv_dtype = parse_dtype(dtype).kv_dtype
        prefill, decode = tables.prefill_rows(kv_dtype), tables.decode_rows(kv_dtype)
        self.batch = _largest_batch(prefill, decode)
        self._prefill = _by_heads(prefill, self.batch)
        self._decode = _by_heads(decode, self.batch)
        self._all_reduce = {
            int(tp): group.sort_values("message_size")
            for tp, group in tables.all_reduce.groupby("num_gpus")
        }

    def gemm(self, rows: int, columns: int, inner: int) -> float:
        """Rows x inner by inner x columns."""
        table, other = (self._wide, columns) if inner == self._hidden else (self._deep, inner)
        return float(np.exp(table(np.log([rows, other]))[0]))

    def prefill(self, tokens: int, heads: int, kv_heads: int) -> float:
        """Causal attention of the whole batch's prompts."""
        rows = self._prefill[heads, kv_heads].sort_values("isl")
        return float(_interpolate(tokens, rows, "isl"))

    def decode(self, context: Floats, heads: int, kv_heads: int) -> Floats:
        """Attention of one step at each context."""
        rows = self._decode[heads, kv_heads].sort_values("kv_len")
        return _interpolate(context, rows, "kv_len")

    def all_reduce(self, elements: int, tp: int) -> float:
        """Among ``tp`` devices."""
        table = self._all_reduce[tp]
        sizes, us = (table[name].to_numpy(np.float64) for name in ("message_size", "us"))
        if elements > sizes[-1]:
            return float(us[-1] * elements / sizes[-1])
        return float(np.exp(np.interp(np.log(elements), np.log(sizes), np.log(us))))


class ModelOperators:
    """The same from a cost model, with the dynamic quantisation that the timings include."""

    def __init__(
        self, constants: EngineConstants, sheet: Sheet, dtype: str, batch: int = BATCH
    ) -> None:
        self._of, self._sheet, self._dtype = constants, sheet, dtype
        self._kv_dtype, self.batch = parse_dtype(dtype).kv_dtype, batch

    def gemm(self, rows: int, columns: int, inner: int) -> float:
        """Rows x inner by inner x columns."""
        constants = self._of.gemm[self._dtype]
        common: dict[str, Any] = {"dtype": self._dtype, "sheet": self._sheet}
        return float(gemm_us(rows, columns, inner, constants=constants, quantise=True, **common))

    def prefill(self, tokens: int, heads: int, kv_heads: int) -> float:
        """Causal attention of the whole batch's prompts."""
        us = prefill_attention_us(
            self.batch,
            tokens,
            tokens,
            constants=self._of.prefill_attention[self._kv_dtype],
            **self._attention(heads, kv_heads),
        )
        return float(us)

    def decode(self, context: Floats, heads: int, kv_heads: int) -> Floats:
        """Attention of one step at each context."""
        constants = self._of.decode_attention[self._kv_dtype]
        common = self._attention(heads, kv_heads)
        return decode_attention_us(self.batch, context, constants=constants, **common)

    def _attention(self, heads: int, kv_heads: int) -> dict[str, Any]:
        shape = {"heads": heads, "kv_heads": kv_heads, "head_dim": HEAD_DIM}
        return shape | {"dtype": self._kv_dtype, "sheet": self._sheet}

    def all_reduce(self, elements: int, tp: int) -> float:
        """Among ``tp`` devices."""
        assert self._of.all_reduce is not None
        lines = self._of.all_reduce.by_tp[tp]
        return float(all_reduce_us(2 * elements, tp=tp, sheet=self._sheet, lines=lines))


def is_spike(rows: pd.DataFrame) -> pd.Series:
    """Matrix products that take 1.5 times as long as both with the next fewer and more rows.

    No kernel does that; a timing that met a pause of the machine does.
    """
    ordered = rows.sort_values(["n", "k", "m"])
    by_matrix = ordered.groupby(["n", "k"])["us"]
    neighbours = pd.concat([by_matrix.shift(1), by_matrix.shift(-1)], axis=1).max(
        axis=1, skipna=False
    )
    return (ordered["us"] > _SPIKE * neighbours).reindex(rows.index)


def without_spikes(rows: pd.DataFrame) -> pd.DataFrame:
    """The same with each spike replaced by the mean of its neighbours, in logarithms."""
    spikes = is_spike(rows)
    ordered = rows.assign(us=np.log(rows["us"].where(~spikes))).sort_values(["n", "k", "m"])
    return ordered.assign(
        us=np.exp(ordered.groupby(["n", "k"])["us"].transform(lambda us: us.interpolate()))
    )


def _interpolator(rows: pd.DataFrame, axes: Sequence[str]) -> RegularGridInterpolator:
    """Microseconds over two axes, all in logarithms."""
    table = rows.pivot_table(index=axes[0], columns=axes[1], values="us")
    knots = [np.log(axis.to_numpy(np.float64)) for axis in (table.index, table.columns)]
    return RegularGridInterpolator(knots, np.log(table.to_numpy()))


def _largest_batch(prefill: pd.DataFrame, decode: pd.DataFrame) -> int:
    """The largest batch, 64 at most, that was timed at every length and number of heads asked."""
    scenarios = [Scenario.parse(text) for text in SCENARIOS]
    prompt = max(scenario.input_len for scenario in scenarios)
    context = max(float(_contexts(scenario).max()) for scenario in scenarios)
    found = []
    for rows, name, longest in ((prefill, "isl", prompt), (decode, "kv_len", context)):
        rows = rows[rows["head_dim"] == HEAD_DIM]
        reached = rows.groupby(["batch_size", "num_heads", "num_key_value_heads"])[name].max()
        wanted = {(64 // tp, -(-kv_heads // tp)) for tp in TP_DEGREES for kv_heads in (8, 4, 2, 1)}
        found.append(
            {
                batch
                for batch in reached.index.levels[0]
                if all(reached.get((batch, *pair), 0) >= longest for pair in wanted)
            }
        )
    timed = [batch for batch in found[0] & found[1] if batch <= BATCH]
    if not timed:
        raise InputError(
            "no batch was timed at every length and number of heads", remedy="time more shapes"
        )
    return int(max(timed))


def _contexts(scenario: Scenario) -> Floats:
    """Contexts that stand for all steps of a scenario."""
    nodes = (np.arange(_CONTEXT_NODES) + 0.5) / _CONTEXT_NODES
    return np.asarray(scenario.input_len + nodes * scenario.decode_steps)


def _by_heads(rows: pd.DataFrame, batch: int) -> dict[tuple[int, int], pd.DataFrame]:
    """Rows of the batch that is asked for, which is on the grid."""
    rows = rows[(rows["batch_size"] == batch) & (rows["head_dim"] == HEAD_DIM)]
    groups = rows.groupby(["num_heads", "num_key_value_heads"])
    return {(int(heads), int(kv_heads)): group for (heads, kv_heads), group in groups}


def _interpolate(at: float | Floats, rows: pd.DataFrame, axis: str) -> Floats:
    """Microseconds along one axis inside the grid, in logarithms."""
    knots, us = (rows[name].to_numpy(np.float64) for name in (axis, "us"))
    assert np.all((at >= knots[0]) & (at <= knots[-1]))
    return np.asarray(np.exp(np.interp(np.log(at), np.log(knots), np.log(us))))


def subblock_us(
    of: Operators, name: str, kind: str, config: ParentConfig, scenario: Scenario, tp: int
) -> float:
    """One subblock over a whole scenario, the whole batch: its matrix products and attention."""
    variant = parse_variant(kind, name)  # type: ignore[arg-type]
    if isinstance(variant, NoOp):
        return 0.0
    hidden, tokens = config.hidden_size, of.batch * scenario.input_len
    total = 0.0
    for rows, times in (
        (min(tokens, _CHUNK_TOKENS), max(1.0, tokens / _CHUNK_TOKENS)),
        (of.batch, float(scenario.decode_steps)),
    ):
        if isinstance(variant, Gqa):
            heads, kv_heads = config.num_heads // tp, -(-variant.kv_heads // tp)
            step = of.gemm(rows, (heads + 2 * kv_heads) * HEAD_DIM, hidden)
            step += of.gemm(rows, hidden, heads * HEAD_DIM)
        elif isinstance(variant, Mlp):
            width = variant.intermediate_size // tp
            step = of.gemm(rows, 2 * width, hidden) + of.gemm(rows, hidden, width)
        else:
            step = of.gemm(rows, hidden, hidden // tp)
        if tp > 1:
            step += of.all_reduce(rows * hidden, tp)
        total += times * step
    if isinstance(variant, Gqa):
        total += of.prefill(scenario.input_len, heads, kv_heads)
        total += scenario.decode_steps * float(
            of.decode(_contexts(scenario), heads, kv_heads).mean()
        )
    return total


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Agreement on the 54 variants over scenarios and TP degrees."""

    tau_least: float
    points_p90: float
    points_worst: float

    def as_dict(self) -> dict[str, float]:
        """As it is written in results."""
        return {name: round(value, 4) for name, value in vars(self).items()}


def agreement(
    truth: Operators,
    model: Operators,
    config: ParentConfig,
    attention: Sequence[str],
    ffn: Sequence[str],
) -> Agreement:
    """Least Kendall tau, and error of the cost relative to the parent's, in points."""
    taus, points = [], []
    for text in SCENARIOS:
        for tp in TP_DEGREES:
            costs = [_costs(of, config, Scenario.parse(text), tp, attention, ffn)
                     for of in (truth, model)]  # fmt: skip
            taus.append(float(kendalltau(*costs).statistic))
            parent = attention.index(config.attention) * len(ffn) + ffn.index(config.ffn)
            relative = [100 * cost / cost[parent] for cost in costs]
            points.append(np.abs(relative[1] - relative[0]))
    every = np.concatenate(points)
    return Agreement(
        tau_least=min(taus),
        points_p90=float(np.quantile(every, 0.9)),
        points_worst=float(every.max()),
    )


def _costs(
    of: Operators,
    config: ParentConfig,
    scenario: Scenario,
    tp: int,
    attention: Sequence[str],
    ffn: Sequence[str],
) -> Floats:
    """Microseconds of every block, attention by FFN, flat."""
    first = np.array([subblock_us(of, v, "attention", config, scenario, tp) for v in attention])
    second = np.array([subblock_us(of, v, "ffn", config, scenario, tp) for v in ffn])
    return np.asarray((first[:, None] + second).ravel())
