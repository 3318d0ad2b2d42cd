"""The GPU check's demands against what was measured, as a table, and its pictures."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpu_setting import PARENT, Setting
from matplotlib.figure import Figure

NOT_MEASURED = "not yet measured"
_PUBLISHED_PART = 0.8


@dataclass(frozen=True, kw_only=True)
class Demand:
    """One line of the table: what was asked, what was reached, and whether that meets it."""

    what: str
    asked: str
    reached: str
    met: bool | None = None

    def as_dict(self) -> dict[str, Any]:
        """As results keep it."""
        return dict(vars(self))


def demands(
    setting: Setting, entries: dict[str, dict[str, Any]], *, errors: tuple[float, float]
) -> list[Demand]:
    """Every demand on models; what has not been measured says so.

    Args:
        setting: what was to run.
        entries: the journal's entries by key.
        errors: demanded median and worst error of predicted throughput.
    """
    found = {key: entry for key, entry in entries.items() if "skipped" not in entry}
    return [
        *_prediction(setting, found, errors),
        _ratio(setting, found),
        *_steps(setting, found),
        _published(setting, found),
        *_answers(setting, found),
    ]


def _prediction(
    setting: Setting, found: dict[str, dict[str, Any]], errors: tuple[float, float]
) -> Iterator[Demand]:
    """As predicted, and times the one scalar that makes the parent's first scenario right."""
    asked = f"median <= {errors[0]:.0%}, worst <= {errors[1]:.0%}"
    what = "predicted against measured tok/s"
    ratios = {
        key: entry["predicted_tps"] / entry["measured_tps"]
        for key, entry in found.items()
        if "measured_tps" in entry
    }
    anchor = f"{PARENT} {setting.scenarios[0]}"
    spreads = [entry["spread"] for entry in found.values() if "spread" in entry]
    moved = f"; the same run moves by {statistics.median(spreads):.0%} itself" if spreads else ""
    lines = {what: 1.0} | ({f"{what}, one scalar": ratios[anchor]} if anchor in ratios else {})
    for name, scalar in lines.items():
        off = {key: ratio / scalar - 1 for key, ratio in ratios.items()}
        if not off:
            yield Demand(what=name, asked=asked, reached=NOT_MEASURED)
            continue
        median = statistics.median(map(abs, off.values()))
        worst = max(off, key=lambda key: abs(off[key]))
        runs = len(setting.specs) * len(setting.scenarios) + len(setting.more)
        yield Demand(
            what=name,
            asked=asked,
            reached=f"median {median:.1%}, worst {off[worst]:+.1%} ({worst}), "
            f"{len(off)} runs of at least {runs}"
            + moved
            + (f", x {scalar:.3f}" if scalar != 1 else ""),
            met=median <= errors[0] and abs(off[worst]) <= errors[1],
        )


def _ratio(setting: Setting, found: dict[str, dict[str, Any]]) -> Demand:
    shown, worst = [], 0.0
    for scenario in setting.scenarios:
        pair = [found.get(f"{name} {scenario}") for name in (setting.rival, PARENT)]
        if None in pair:
            continue
        child, parent = pair
        assert child is not None
        assert parent is not None
        measured = child["measured_tps"] / parent["measured_tps"]
        predicted = child["predicted_tps"] / parent["predicted_tps"]
        worst = max(worst, abs(predicted / measured - 1))
        shown.append(f"{scenario} {measured:.2f}x (predicted {predicted:.2f}x)")
    return Demand(
        what=f"speed-up of {setting.rival} over its parent",
        asked="prediction of the ratio within 5%",
        reached="; ".join(shown) or NOT_MEASURED,
        met=worst <= 0.05 if shown else None,
    )


def _steps(setting: Setting, found: dict[str, dict[str, Any]]) -> Iterator[Demand]:
    steps = {key: entry for key, entry in found.items() if "floor_ms" in entry}

    def line(
        what: str, asked: str, limit: float, value: Callable[[dict[str, Any]], float]
    ) -> Demand:
        if not steps:
            return Demand(what=what, asked=asked, reached=NOT_MEASURED)
        values = {key: value(entry) for key, entry in steps.items()}
        worst = max(values, key=lambda key: values[key])
        median = statistics.median(values.values())
        return Demand(
            what=what,
            asked=asked,
            reached=f"median {median:.3f}, worst {values[worst]:.3f} ({worst})",
            met=values[worst] <= limit,
        )

    yield line(
        "decode step over its floor",
        "<= 1.25",
        1.25,
        lambda entry: entry["measured_ms"] / entry["floor_ms"],
    )
    yield line(
        "sum of profiled parts against the whole decode step",
        "within 0.03",
        0.03,
        lambda entry: abs(entry["predicted_ms"] / entry["measured_ms"] - 1),
    )


def _published(setting: Setting, found: dict[str, dict[str, Any]]) -> Demand:
    parts = {
        scenario: found[f"{PARENT} {scenario}"]["measured_tps"] / published
        for scenario, published in setting.published.items()
        if f"{PARENT} {scenario}" in found
    }
    return Demand(
        what="parent against TensorRT-LLM 0.17 on an H200 (published)",
        asked=f">= {_PUBLISHED_PART} x",
        reached="; ".join(f"{scenario} {part:.2f}x" for scenario, part in parts.items())
        or NOT_MEASURED,
        met=min(parts.values()) >= _PUBLISHED_PART if parts else None,
    )


def _answers(setting: Setting, found: dict[str, dict[str, Any]]) -> Iterator[Demand]:
    for rival in setting.references:
        entry = found.get(f"answer to {rival} {setting.scenarios[0]}")
        what, asked = f"solver's answer against {rival}", "no more damage, no slower"
        if entry is None:
            yield Demand(what=what, asked=asked, reached=NOT_MEASURED)
            continue
        speed = entry["measured_tps"] / entry["rival_measured_tps"]
        yield Demand(
            what=what,
            asked=asked,
            reached=f"damage {entry['damage']:.4g} against {entry['rival_damage']:.4g}, "
            f"{speed:.3f}x its speed ({entry['status']})",
            met=entry["damage"] <= entry["rival_damage"] and speed >= 1,
        )


def markdown(lines: list[Demand], title: str) -> str:
    """The table."""
    rows = [f"# {title}", "", "| what | demand | reached | met |", "|---|---|---|---|"]
    words = {True: "yes", False: "no", None: ""}
    rows += [f"| {d.what} | {d.asked} | {d.reached} | {words[d.met]} |" for d in lines]
    return "\n".join(rows) + "\n"


def plot(entries: dict[str, dict[str, Any]], folder: Path) -> None:
    """Predicted over measured throughput, and decode steps over their floor."""
    runs = [entry for entry in entries.values() if "measured_tps" in entry]
    steps = [entry for entry in entries.values() if "floor_ms" in entry]
    if not runs and not steps:
        return
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name in dict.fromkeys(_model(entry) for entry in runs):
        mine = [entry for entry in runs if _model(entry) == name]
        left.scatter(
            [entry["measured_tps"] for entry in mine],
            [entry["predicted_tps"] for entry in mine],
            s=18,
            label=name,
        )
    if runs:
        ends = [f(e["measured_tps"] for e in runs) for f in (min, max)]
        left.plot(ends, ends, color="0.6", linewidth=0.8, zorder=0)
        left.set(xscale="log", yscale="log", xlabel="measured, tok/s", ylabel="predicted, tok/s")
        left.legend(fontsize="small")
    for name in dict.fromkeys(_model(entry) for entry in steps):
        mine = [entry for entry in steps if _model(entry) == name]
        right.plot(
            [entry["batch"] for entry in mine],
            [entry["measured_ms"] / entry["floor_ms"] for entry in mine],
            marker="o",
            label=name,
        )
    if steps:
        right.axhline(1.25, color="0.6", linewidth=0.8)
        right.set(xscale="log", xlabel="batch", ylabel="decode step / floor")
        right.legend(fontsize="small")
    figure.savefig(folder / "models.png", dpi=130)


def _model(entry: dict[str, Any]) -> str:
    return str(entry["key"]).rpartition(" step ")[0] or str(entry["key"]).rpartition(" ")[0]
