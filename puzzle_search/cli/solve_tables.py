"""``puzzle-search solve-tables``: answers from imported tables."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from puzzle_search.choices import TableGoal
from puzzle_search.cli.options import (
    SEARCH_PANEL,
    SERVING_PANEL,
    BackendOption,
    FreezeOption,
    JsonOption,
    LimitOption,
    MaxParamsOption,
    MaxScoreOption,
    MaxSecondsOption,
    MemoryOption,
    MetricOption,
    OutSpecOption,
)


def solve_tables(
    tables: Annotated[Path, typer.Argument(help="Folder that 'import' wrote.")],
    memory: MemoryOption = None,
    runtime: Annotated[
        str | None,
        typer.Option(help="Of the tables' batch, e.g. 51200ms.", rich_help_panel=SERVING_PANEL),
    ] = None,
    max_params: MaxParamsOption = None,
    max_score: MaxScoreOption = None,
    limit: LimitOption = None,
    freeze: FreezeOption = None,
    goal: Annotated[
        TableGoal, typer.Option(help="What is made best.", rich_help_panel=SEARCH_PANEL)
    ] = "score",
    metric: MetricOption = "kl",
    max_seconds: MaxSecondsOption = 60.0,
    backend: BackendOption = "scip",
    out: OutSpecOption = None,
    as_json: JsonOption = False,
) -> None:
    """Search imported tables of scores and costs, instead of a model on a GPU."""
    from puzzle_search.files import is_stream
    from puzzle_search.solve import solve
    from puzzle_search.solve.question.parse import parse_bytes, parse_layers, parse_microseconds
    from puzzle_search.solve.question.tables import TableLimits, table_problem

    limits = TableLimits(
        memory_bytes=None if memory is None else parse_bytes(memory),
        runtime_us=None if runtime is None else parse_microseconds(runtime),
        parameters=None if max_params is None else max_params * 1e9,
        score=max_score,
        linear=tuple(limit or ()),
        frozen=frozenset() if freeze is None else parse_layers(freeze),
    )
    asked = table_problem(tables, limits, metric=metric, goal=goal)
    found = solve(asked.problem, max_seconds=max_seconds, backend=backend)
    if out is not None:
        asked.spec(found).write(out)
        if is_stream(out):
            return
    if as_json:
        print(json.dumps(asked.as_dict(found)))
        return
    usage, costs = asked.usage(found), asked.costs
    print(
        f"{found.status}: {found.problem.parent} by tables of {costs.gpu or 'an unnamed device'}, "
        f"batch {costs.batch}, {costs.sequence_length} tokens, {costs.dtype}; "
        f"score {found.score:.5g}, gap {found.gap:.2g}, {found.seconds:.2f} s"
    )
    runtime_ms = usage["runtime_ms"]
    print(f"memory   {usage['memory_mib']:12,.0f} MiB")
    print(f"runtime  {runtime_ms:12,.0f} ms" if runtime_ms is not None else "runtime  not known")
    print(f"params   {(usage['params'] or 0) / 1e9:12,.2f} B")
    for subblock in ("attention", "ffn"):
        counts = Counter(getattr(block, subblock) for block in found.spec.blocks)
        chosen = ", ".join(f"{count} x {name}" for name, count in counts.most_common())
        print(f"{subblock}: {chosen}")
    print(f"evidence: scores {found.problem.score_evidence}, cost {costs.evidence}")
    if out is not None:
        print(f"written to {out}")
