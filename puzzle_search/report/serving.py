"""Serving figures of models as a plain table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_COLUMNS = (
    ("batch", "batch", 1.0, ",.0f"),
    ("tok/s/GPU", "tokens_per_second", 1.0, ",.0f"),
    ("tok/s/user", "tokens_per_second_per_user", 1.0, ",.1f"),
    ("TTFT P50", "ttft_ms", 1.0, ",.1f"),
    ("P99, ms", "ttft_p99_ms", 1.0, ",.1f"),
    ("TPOT P50", "tpot_ms", 1.0, ",.2f"),
    ("P99, ms", "tpot_p99_ms", 1.0, ",.2f"),
    ("latency P50", "latency_ms", 1.0, ",.1f"),
    ("P99, ms", "latency_p99_ms", 1.0, ",.1f"),
    ("memory, GB", "memory_bytes", 1e-9, ",.3f"),
    ("peak, GB", "peak_bytes", 1e-9, ",.3f"),
)


def serving_table(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> str:
    """One line a row, named; the last column compares throughputs with the first row's.

    Args:
        rows: figures as ``ServingFigures.as_dict`` gives them.
        names: of the rows.
    """
    shown = [column for column in _COLUMNS if any(row[column[1]] is not None for row in rows)]
    lines = [["", *(column[0] for column in shown), "x the first"]]
    for name, row in zip(names, rows, strict=True):
        cells = [
            "-" if row[key] is None else f"{row[key] * scale:{form}}"
            for _, key, scale, form in shown
        ]
        ratio = row["tokens_per_second"] / rows[0]["tokens_per_second"]
        lines.append([name, *cells, f"{ratio:.2f}"])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])])
        for line in lines
    )
