"""Predicted costs of models side by side, as a table of the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

    from puzzle_search.cost import ScenarioCost

_ROWS = (
    ("tok/s/GPU", "tokens_per_second_per_gpu", ",.0f"),
    ("TTFT, ms", "ttft_ms", ",.1f"),
    ("TPOT, ms", "tpot_ms", ",.2f"),
)


def scenario_table(
    scenario: str,
    names: tuple[str, str],
    costs: tuple[ScenarioCost | None, ScenarioCost | None],
) -> Table:
    """A column for each of two models, and the figures of the second by those of the first.

    Args:
        scenario: title of the first column.
        names: of the models.
        costs: of the models; None where one fits in no memory.
    """
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    table.add_column(scenario)
    for name in (*names, "ratio"):
        table.add_column(name, justify="right", overflow="fold")
    first, second = costs
    for label, field, form in _ROWS:
        cells = [f"{getattr(cost, field):{form}}" if cost else "does not fit" for cost in costs]
        if first and second and getattr(first, field):
            cells.append(f"{getattr(second, field) / getattr(first, field):.2f} x")
        table.add_row(label, *cells)
    table.add_row(
        "batch x TP",
        *(f"{cost.point.batch} x {cost.point.tp}" if cost else "" for cost in costs),
    )
    table.add_row(
        "memory, GB",
        *(
            f"{cost.memory_bytes / 1e9:.1f} of {cost.memory_limit_bytes / 1e9:.1f}" if cost else ""
            for cost in costs
        ),
    )
    return table
