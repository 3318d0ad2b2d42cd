"""A frontier as table, CSV, JSON and plot."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from puzzle_search.choices import Axis
from puzzle_search.files import write_text
from puzzle_search.report.frontier_file import FORMAT, FRONTIER_FILE
from puzzle_search.report.plots import Picture, draw_trade_off
from puzzle_search.solve.answers.frontier import FrontierPoint
from puzzle_search.solve.question.answer import Answer
from puzzle_search.solve.question.ask import PosedQuestion

_UNITS = {"throughput": (1.0, "tok/s/GPU"), "memory": (1e-9, "GB"), "latency": (1.0, "ms")}
_TABLE_ROWS = 20


@dataclass(frozen=True, kw_only=True)
class FrontierReport:
    """Points of a frontier with what they were asked of."""

    axis: Axis
    points: tuple[FrontierPoint, ...]
    asked: PosedQuestion

    def rows(self) -> list[dict[str, Any]]:
        """One row a point; ``limit`` is in tok/s/GPU, bytes or ms."""
        return [self._row(point) for point in self.points]

    def _row(self, point: FrontierPoint) -> dict[str, Any]:
        answer, cost = self._answer(point), point.solution.cost
        return {
            "limit": point.limit,
            "score": point.solution.score,
            "status": point.solution.status,
            "gap": point.solution.gap,
            "tokens_per_second_per_gpu": cost.tokens_per_second_per_gpu,
            "ttft_ms": cost.ttft_ms,
            "tpot_ms": cost.tpot_ms,
            "latency_ms": cost.latency_ms,
            "batch": cost.point.batch,
            "tp": cost.point.tp,
            "memory_bytes": cost.memory_bytes,
            "params": answer.parameters,
            "kv_bytes_per_token": answer.kv_bytes_per_token,
        }

    def _answer(self, point: FrontierPoint) -> Answer:
        return self.asked.answer(point.solution)

    def as_dict(self) -> dict[str, Any]:
        """The frontier as ``frontier --json`` prints it and `read_frontier` reads it."""
        shown = []
        for point, row in zip(self.points, self.rows(), strict=True):
            blocks = point.solution.spec.blocks
            shown.append(
                row
                | {
                    "attention": dict(Counter(block.attention for block in blocks)),
                    "ffn": dict(Counter(block.ffn for block in blocks)),
                    "scenarios": [cost.as_dict() for cost in point.solution.costs],
                    "blocks": [block.as_dict() for block in blocks],
                }
            )
        return {
            "format": FORMAT,
            "parent": self.asked.inputs.config.name,
            "axis": self.axis,
            "asked": self.asked.question.as_dict(),
            "evidence": self._answer(self.points[0]).evidence,
            "points": shown,
        }

    def table(self) -> str:
        """At most twenty rows, the ends among them."""
        scale, unit = _UNITS[self.axis]
        count = len(self.points)
        step = max(1, (count - 1) // (_TABLE_ROWS - 1))
        chosen = sorted({*range(0, count, step), count - 1})
        rows = self.rows()
        many = max(row["params"] for row in rows) >= 1e9
        of, params = (1e9, "params, B") if many else (1e6, "params, M")
        lines = [f"{unit:>12}{'score':>10}{'tok/s/GPU':>11}{params:>11}{'batch x TP':>12}  gap"]
        for number in chosen:
            row = rows[number]
            lines.append(
                f"{row['limit'] * scale:12,.5g}{row['score']:10.4g}"
                f"{row['tokens_per_second_per_gpu']:11,.0f}{row['params'] / of:11.2f}"
                f"{row['batch']:>8} x {row['tp']}  {row['gap']:.1g}"
            )
        proven = sum(row["status"] == "optimal" for row in rows)
        evidence = self._answer(self.points[0]).evidence
        lines.append(
            f"{count} points, {proven} proven optimal; "
            f"evidence: scores {evidence['scores']}, cost {evidence['cost']}"
        )
        return "\n".join(lines)

    def write(self, folder: Path) -> None:
        """Write ``frontier.csv``, ``frontier.json`` and ``frontier.png``.

        Raises:
            MissingDependencyError: matplotlib is absent; the other files are written.
        """
        out = io.StringIO()
        rows = self.rows()
        writer = csv.DictWriter(out, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_text(folder / "frontier.csv", out.getvalue())
        write_text(folder / FRONTIER_FILE, json.dumps(self.as_dict(), indent=1))
        self.plot(folder / "frontier.png")

    def plot(self, file: Path) -> None:
        """Draw score against the limit.

        Raises:
            MissingDependencyError: matplotlib is absent.
        """
        scale, unit = _UNITS[self.axis]
        points = [
            (point.limit * scale, point.solution.score, point.solution.status == "optimal")
            for point in self.points
        ]
        cost, answer = self.points[0].solution.cost, self._answer(self.points[0])
        evidence = answer.evidence
        title = (
            f"{answer.config.name} on {cost.gpu}, {cost.scenario}, {self.asked.question.dtype}; "
            f"scores {evidence['scores']}, cost {evidence['cost']}"
        )
        with Picture(file, title=title) as panel:
            draw_trade_off(panel, [points])
            panel.set_xlabel(f"{self.axis}, {unit}")
            panel.set_ylabel(f"summed damage ({self.asked.question.metric})")
