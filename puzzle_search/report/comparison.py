"""Predicted against measured, for parent and child side by side."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from puzzle_search.arch import ArchitectureSpec
from puzzle_search.cost import Scenario, ScenarioCost
from puzzle_search.files import write_text


@dataclass(frozen=True, kw_only=True)
class ComparisonRow:
    """One figure; ``predicted`` is None where nothing was predicted."""

    what: str
    predicted: float | None
    measured: float
    unit: str

    @property
    def error(self) -> float | None:
        """(predicted - measured) / measured."""
        if self.predicted is None or not self.measured:
            return None
        return (self.predicted - self.measured) / self.measured


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Predictions made before the child existed, and what was measured on it afterwards.

    ``measured_*`` are the figures of ``Throughput.as_dict``, ``quality`` those of ``Quality``;
    ``quality_before`` is the child's before global distillation, where there was one.
    ``engine_scalar`` makes the parent's predicted throughput equal to the one measured in turn
    with the child; ``solving_scalar`` is the one that stood when the child was chosen, and their
    ratio is how much the machine's own speed changed in between. ``remarks`` say what went
    otherwise than one would wish.
    """

    spec: ArchitectureSpec
    device: str
    date: str
    scenario: Scenario
    engine_scalar: float
    solving_scalar: float
    predicted_parent: ScenarioCost
    predicted_child: ScenarioCost
    measured_parent: dict[str, Any]
    measured_child: dict[str, Any]
    quality: dict[str, Any]
    quality_before: dict[str, Any] | None = None
    remarks: tuple[str, ...] = ()

    def rows(self) -> list[ComparisonRow]:
        """All figures."""
        rows = []
        sides = (
            ("parent", self.predicted_parent, self.measured_parent),
            ("child", self.predicted_child, self.measured_child),
        )
        for who, predicted, measured in sides:
            rows += [
                _row(f"{who} throughput",
                     None if who == "parent" else predicted.tokens_per_second_per_gpu,
                     measured["tokens_per_second"], "tok/s"),
                _row(f"{who} TTFT", predicted.ttft_ms, measured["ttft_ms"], "ms"),
                _row(f"{who} TPOT", predicted.tpot_ms, measured["tpot_ms"], "ms"),
            ]  # fmt: skip
        predicted_ratio = (
            self.predicted_child.tokens_per_second_per_gpu
            / self.predicted_parent.tokens_per_second_per_gpu
        )
        rows += [
            _row("speed-up", predicted_ratio, self.speedup, "x"),
            *(
                _row(f"{who} memory", predicted.weights_and_kv_bytes / 1e6,
                     measured["memory_bytes"] / 1e6, "MB")
                for who, predicted, measured in sides
            ),
        ]  # fmt: skip
        built = self.quality_before or self.quality
        rows.append(_row("damage (KL to parent)", self._estimate, built["kl"], "nats"))
        if self.quality_before is not None:
            rows.append(_row("damage after distillation", None, self.quality["kl"], "nats"))
        rows += [
            _row("parent accuracy", None, 100 * self.quality["parent_accuracy"], "%"),
            _row("child accuracy", None, 100 * self.quality["child_accuracy"], "%"),
        ]
        if self.quality["accuracy_preserved"] is not None:
            preserved = 100 * self.quality["accuracy_preserved"]
            rows.append(_row("accuracy preserved", None, preserved, "%"))
        return rows

    @property
    def speedup(self) -> float:
        """Measured throughput of the child over the parent's, run in turn."""
        ratio: float = (
            self.measured_child["tokens_per_second"] / self.measured_parent["tokens_per_second"]
        )
        return ratio

    @property
    def _estimate(self) -> float:
        """Damage as estimated when the child was chosen: in its round, or by summed scores."""
        rounds = self.spec.solution.get("rounds", [])
        chosen = min(rounds, key=lambda done: float(done["measured"]), default=None)
        return float(self.spec.solution["score"] if chosen is None else chosen["estimate"])

    @property
    def _estimated_by(self) -> str:
        if "rounds" in self.spec.solution:
            return "that of the child before plus the changes of the last round (measured)"
        return "the sum of replace-1-block scores (measured)"

    @property
    def _chosen_at(self) -> float:
        """Throughput of the child as predicted by the solver."""
        return float(self.spec.solution["scenarios"][0]["tokens_per_second_per_gpu"])

    def notes(self) -> list[str]:
        """Where the figures come from."""
        quality, bench = self.quality, self.measured_child
        return [
            f"{self.device}; scenario {self.scenario}; batch parent "
            f"{self.measured_parent['batch']}, child {bench['batch']}; {self.date}",
            f"predicted: profile of subblocks (measured) x one engine scalar "
            f"{self.engine_scalar:.3f}, which fits the parent's throughput and knows nothing of "
            f"the child; damage is {self._estimated_by}",
            f"when the child was chosen it was predicted at {self._chosen_at:,.0f} tok/s; by the "
            f"parent's throughput the machine's own speed has changed by "
            f"{self.solving_scalar / self.engine_scalar - 1:+.1%} since",
            f"measured: medians of {bench['iterations']} runs, parent and child in turn; "
            f"quality on {quality['tokens']} held-out tokens",
            *self.remarks,
        ]

    def markdown(self) -> str:
        """The table as Markdown."""
        lines = ["| | predicted | measured | error |", "|---|---|---|---|"]
        for row in self.rows():
            cells = [row.what, *cells_of(row)]
            lines.append(f"| {' | '.join(cells)} |")
        return "\n".join([*lines, "", *(f"- {note}" for note in self.notes()), ""])

    def as_dict(self) -> dict[str, Any]:
        """The table as data."""
        return {
            "rows": [asdict(row) | {"error": row.error} for row in self.rows()],
            "notes": self.notes(),
            "quality": self.quality,
            "measured": {"parent": self.measured_parent, "child": self.measured_child},
        }


def _row(what: str, predicted: float | None, measured: float, unit: str) -> ComparisonRow:
    return ComparisonRow(what=what, predicted=predicted, measured=measured, unit=unit)


def cells_of(row: ComparisonRow) -> list[str]:
    """Predicted, measured and error of a row, as text."""
    predicted = "" if row.predicted is None else f"{row.predicted:,.4g} {row.unit}"
    error = "" if row.error is None else f"{row.error:+.1%}"
    return [predicted, f"{row.measured:,.4g} {row.unit}", error]


def write_comparison(comparison: Comparison, folder: Path) -> None:
    """Write ``report.md`` and ``report.json``."""
    write_text(folder / "report.md", comparison.markdown())
    write_text(folder / "report.json", json.dumps(comparison.as_dict(), indent=1))
