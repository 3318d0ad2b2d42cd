"""Throughput against tokens per second of each user, as table, CSV, JSON and plot."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from puzzle_search.files import write_text
from puzzle_search.report.plots import Picture, draw_rates
from puzzle_search.report.serving import serving_table

_CSV_FIELDS = (
    "model", "weights", "batch", "tokens_per_second", "p10", "p90", "tokens_per_second_per_user",
    "ttft_ms", "ttft_p99_ms", "tpot_ms", "tpot_p99_ms", "latency_ms", "latency_p99_ms",
    "memory_bytes", "peak_bytes", "iterations", "in_turn",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class SweepReport:
    """Figures of models over batch sizes.

    Attributes:
        heading: device, lengths and dtype.
        points: figures of one model at one batch size each, with ``model`` and ``weights``.
        ended: where memory ended the sweep, in words.
    """

    heading: Mapping[str, Any]
    points: tuple[Mapping[str, Any], ...]
    ended: tuple[str, ...]

    @property
    def title(self) -> str:
        """Where it was measured, and what."""
        heading = self.heading
        return (
            f"{heading['device']['name']}, {heading['input_len']}/{heading['output_len']}, "
            f"{heading['dtype']}"
        )

    @property
    def curves(self) -> dict[str, list[Mapping[str, Any]]]:
        """Points of each model, by name, in order of batch size."""
        curves: dict[str, list[Mapping[str, Any]]] = {}
        for point in self.points:
            name = point["model"]
            if point["weights"] != "checkpoint":
                name = f"{name} ({point['weights']})"
            curves.setdefault(name, []).append(point)
        return curves

    def as_dict(self) -> dict[str, Any]:
        """The sweep as ``bench sweep --json`` prints it."""
        return {**self.heading, "points": list(self.points), "ended": list(self.ended)}

    def table(self) -> str:
        """A table for each batch size, models as rows, compared with the first of them."""
        batches = sorted({point["batch"] for point in self.points})
        lines = [self.title]
        for batch in batches:
            rows = {
                name: point
                for name, points in self.curves.items()
                for point in points
                if point["batch"] == batch
            }
            lines += ["", serving_table(list(rows.values()), list(rows))]
        return "\n".join([*lines, *self.ended])

    def write(self, folder: Path) -> None:
        """Write ``sweep.csv``, ``sweep.json`` and ``sweep.png``.

        Raises:
            MissingDependencyError: matplotlib is absent; the other files are written.
        """
        out = io.StringIO()
        writer = csv.DictWriter(out, _CSV_FIELDS, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.points)
        write_text(folder / "sweep.csv", out.getvalue())
        write_text(folder / "sweep.json", json.dumps(self.as_dict(), indent=1))
        self.plot(folder / "sweep.png")

    def plot(self, file: Path) -> None:
        """Draw a curve for each model; batch sizes stand beside its points.

        Raises:
            MissingDependencyError: matplotlib is absent.
        """
        curves = {
            name: [
                (point["tokens_per_second_per_user"], point["tokens_per_second"], point["batch"])
                for point in points
                if point["tokens_per_second_per_user"] is not None
            ]
            for name, points in self.curves.items()
        }
        with Picture(file, title=f"{self.title}; measured") as panel:
            draw_rates(panel, {name: points for name, points in curves.items() if points})
