"""Fit what the experts of a layer cost as one, from their timings. Needs pandas and scipy."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from puzzle_search.cost.fitting.ratio_fit import ROOFLINE, fit_constants, fit_ratios
from puzzle_search.cost.fitting.residuals import Residuals, held_out
from puzzle_search.cost.modelled.constants import ExpertsConstants, Provenance, Sheet
from puzzle_search.cost.modelled.operators import experts_limits_us, experts_us, roofline_us

TABLE_DTYPE = {"mxfp4": "w4a16_mxfp4"}
# Tokens spread over experts as in published traces: some get more than others.
_SPREAD = "power_law_1.01"
_SHAPE = ("num_tokens", "num_experts", "topk", "hidden_size", "inter_size", "moe_tp_size")
# A model has at least so many timings, on one device and cut over several.
_LEAST_WIDTHS = 3
_AXES = {
    "tokens": tuple(2.0**i for i in range(16)),
    "experts": (8, 16, 32, 64, 128, 256),
    "width": tuple(2880 / 2**i for i in reversed(range(6))),
}
_TABLES = ("tokens experts", "tokens width", "experts width")


def expert_rows(table: pd.DataFrame, dtype: str) -> pd.DataFrame:
    """Timings of one dtype without expert parallelism, of the models with up to 256 experts."""
    return table[
        (table["moe_dtype"] == TABLE_DTYPE[dtype])
        & (table["distribution"] == _SPREAD)
        & (table["moe_ep_size"] == 1)
        & (table["num_experts"] <= _AXES["experts"][-1])
    ]


def fit_experts(
    table: pd.DataFrame | None, *, sheet: Sheet, source: str
) -> dict[str, ExpertsConstants]:
    """The constants of every dtype that was timed in several widths; none without a table."""
    if table is None:
        return {}
    timed = {dtype: expert_rows(table, dtype) for dtype in TABLE_DTYPE}
    return {
        dtype: _fit(rows, dtype, sheet, source)
        for dtype, rows in timed.items()
        if rows["moe_tp_size"].nunique() >= _LEAST_WIDTHS
    }


def _fit(rows: pd.DataFrame, dtype: str, sheet: Sheet, source: str) -> ExpertsConstants:
    train = rows[~_held_out(rows)]
    tokens, experts, top_k, hidden, width = _sizes(train)
    timed_us = train["us"].to_numpy(np.float64)
    limits = experts_limits_us(tokens, experts, top_k, hidden, width, dtype=dtype, sheet=sheet)
    unknown = Provenance(evidence="published", source=source, error_median=None, error_p90=None)

    def constants(values: NDArray[np.float64]) -> ExpertsConstants:
        named = dict(zip(ROOFLINE, map(float, values), strict=True))
        return ExpertsConstants(provenance=unknown, ratios=None, **named)

    fitted = constants(
        fit_constants(
            lambda values: np.log(roofline_us(*limits, constants(values)) / timed_us),
            bounds=ROOFLINE,
        )
    )
    sizes = {"tokens": tokens, "experts": experts, "width": width}
    ratios = fit_ratios(_AXES, _TABLES, sizes, timed_us / roofline_us(*limits, fitted))
    fitted = replace(fitted, ratios=ratios)
    checked = predict_experts(rows, dtype, sheet, fitted)
    return replace(fitted, provenance=checked.provenance(source))


def predict_experts(
    rows: pd.DataFrame, dtype: str, sheet: Sheet, constants: ExpertsConstants
) -> Residuals:
    """What the constants say of timings."""
    tokens, experts, top_k, hidden, width = _sizes(rows)
    predicted = experts_us(
        tokens,
        experts=experts,
        top_k=top_k,
        hidden=hidden,
        width=width,
        dtype=dtype,
        sheet=sheet,
        constants=constants,
    )
    return Residuals(
        operator="experts",
        dtype=dtype,
        measured_us=rows["us"].to_numpy(np.float64),
        predicted_us=predicted,
        held_out=_held_out(rows),
        kv_heads=np.zeros(len(rows), dtype=np.int64),
    )


def _sizes(rows: pd.DataFrame) -> tuple[NDArray[np.float64], ...]:
    """Tokens, experts, experts of a token, hidden size, and width on one device."""
    tokens, experts, top_k, hidden, width, tp = (rows[name].to_numpy(np.float64) for name in _SHAPE)
    return tokens, experts, top_k, hidden, np.ceil(width / tp)


def _held_out(rows: pd.DataFrame) -> NDArray[np.bool_]:
    """Held-out rows: tokens by number of experts and width."""
    return held_out(rows["num_experts"], rows["moe_tp_size"], rows["num_tokens"])
