"""Claims as Markdown, and as plots."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
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


@dataclass(frozen=True, kw_only=True)
class _Picture:
    """What of a claim's columns is drawn, by number: panels by one, lines by another, or by y."""

    x: int
    y: list[int]
    panels: int | None = None
    lines: int | None = None
    label: str


_PICTURES = {
    "rounds": _Picture(
        x=1, y=[2, 3, 4, 6, 7, 8], panels=0, label="cost, as a part of the parent's"
    ),
    "search": _Picture(x=2, y=[5, 7], lines=1, label="measured speed-up"),
    "metric": _Picture(x=2, y=[3, 5], lines=1, label="measured speed-up"),
    "bld_tokens": _Picture(x=0, y=[3], lines=1, label="tokens of distillation a variant"),
    "preserved": _Picture(x=1, y=[5], lines=0, label="tokens of global distillation"),
}


def plot(claim: Claim, folder: Path) -> None:
    """One picture of a claim that has one."""
    picture = _PICTURES.get(claim.name)
    if picture is None:
        return
    drawn: dict[str, dict[str, list[tuple[float, float]]]] = defaultdict(lambda: defaultdict(list))
    for row in claim.rows:
        for column in picture.y:
            name = claim.columns[column]
            panel = name if picture.panels is None else f"{claim.columns[0]} {row[picture.panels]}"
            line = name if picture.lines is None else str(row[picture.lines])
            if row[column] is not None:
                drawn[panel][line].append((row[picture.x], row[column]))
    figure, axes = plt.subplots(1, len(drawn), figsize=(5 * len(drawn), 4), squeeze=False)
    for axis, (panel, lines) in zip(axes[0], drawn.items(), strict=True):
        for line, points in lines.items():
            axis.plot(*zip(*sorted(points), strict=True), marker="o", label=line)
        is_kl = any("KL" in claim.columns[column] for column in picture.y)
        axis.set(title=panel, xlabel=picture.label, yscale="log" if is_kl else "linear")
        axis.set_ylabel("KL to the parent, nats" if is_kl else claim.columns[picture.y[0]])
        axis.legend(fontsize=8)
    figure.suptitle(claim.question, fontsize=10)
    figure.tight_layout()
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / f"{claim.name}.png", dpi=120)
    plt.close(figure)
