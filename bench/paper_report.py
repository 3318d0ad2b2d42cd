"""Claims as Markdown, and as plots."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import matplotlib as mpl
from paper_claims import Claim

mpl.use("Agg")
from matplotlib import pyplot as plt


def markdown(claims: list[Claim], setting: dict[str, Any]) -> str:
    """All claims, each with the paper's figures above its table."""
    lines = ["# The paper's claims on a small parent", ""]
    lines += [f"- {name}: {value}" for name, value in setting.items()]
    for claim in claims:
        lines += ["", f"## {claim.question}", "", f"**Here:** {claim.verdict}.", ""]
        lines += [f"**Paper:** {claim.paper}.", "", _row(claim.columns)]
        lines.append(_row(["---"] * len(claim.columns)))
        lines += [_row([_shown(v, c) for v, c in zip(row, claim.columns, strict=True)])
                  for row in claim.rows]  # fmt: skip
    return "\n".join(lines) + "\n"


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _shown(value: object, column: str) -> str:
    if value is None:
        return ""
    if not isinstance(value, float):
        return f"{value:,}" if isinstance(value, int) else str(value)
    if "accuracy" in column and value <= 2:
        return f"{value:.1%}"
    if column == "change":
        return f"{value:+.1%}"
    return f"{value:.0f}" if abs(value) >= 50 else f"{value:.3f}".rstrip("0").rstrip(".")


def plot(claim: Claim, folder: Path) -> Path | None:
    """One picture of a claim that has one: KL by what is varied, a line for each way."""
    axes = {
        "rounds": (1, 0, [2, 3, 4], "cost, as a part of the parent's"),
        "search": (2, 1, [3, 5], "measured speed-up"),
        "metric": (0, 1, [2, 4], "speed-up asked"),
        "bld_tokens": (0, 1, [2], "tokens of distillation a variant"),
        "preserved": (1, 0, [4], "tokens of global distillation"),
    }
    if claim.name not in axes:
        return None
    x, group, values, label = axes[claim.name]
    figure, panels = plt.subplots(
        1, len(values) if group is not None else 1, figsize=(9, 4), squeeze=False, sharey=True
    )
    for number, value in enumerate(values):
        panel = panels[0][number if group is not None else 0]
        lines = defaultdict(list)
        for row in claim.rows:
            name = str(row[group]) if group is not None else claim.columns[value]
            if row[value] is not None:
                lines[name].append((row[x], row[value]))
        for name, points in lines.items():
            panel.plot(*zip(*sorted(points), strict=True), marker="o", label=name)
        panel.set_xlabel(label)
        panel.set_ylabel(claim.columns[value] if group is not None else "KL to the parent, nats")
        panel.set_yscale("log" if "KL" in claim.columns[value] else "linear")
        panel.legend(fontsize=8)
    figure.suptitle(claim.question, fontsize=10)
    figure.tight_layout()
    target = folder / f"{claim.name}.png"
    figure.savefig(target, dpi=120)
    plt.close(figure)
    return target
