"""``puzzle-search solve --problem``: answers from imported tables."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from puzzle_search.solve.question.tables import TableProblem
    from puzzle_search.solve.search.exact.core import Backend


def solve_tables(
    asked: TableProblem, *, max_seconds: float, backend: Backend, out: Path | None, as_json: bool
) -> None:
    """Solve, write and print."""
    from puzzle_search.files import is_stream
    from puzzle_search.solve import solve

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
