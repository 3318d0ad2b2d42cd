"""The pictures of the page for print, from the same data."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, cast, get_args

from puzzle_search.errors import InputError
from puzzle_search.report.plots import (
    CHANGES,
    MUTED,
    Mark,
    Picture,
    draw_rates,
    draw_trade_off,
)

What = Literal["frontier", "layers", "serving"]
Unit = Literal["time", "memory", "parameters"]
_GAP = 0.16  # between bars, layers
_UNITS: dict[Unit, tuple[str, float, str]] = {
    "time": ("time_us", 1e-3, "ms"),
    "memory": ("memory_bytes", 1e-6, "MB"),
    "parameters": ("parameters", 1e-6, "M"),
}


def parse_what(name: str) -> What:
    """The picture of that name.

    Raises:
        InputError: it is not known.
    """
    if name not in get_args(What):
        raise InputError(
            f"picture {name!r} is not known", remedy=f"use {', '.join(get_args(What))}"
        )
    return cast(What, name)


def parse_unit(name: str) -> Unit:
    """The unit of bars of that name.

    Raises:
        InputError: it is not known.
    """
    if name not in get_args(Unit):
        raise InputError(f"unit {name!r} is not known", remedy=f"use {', '.join(get_args(Unit))}")
    return cast(Unit, name)


def frontier_figure(data: dict[str, Any], file: Path) -> None:
    """Quality against throughput in the first scenario; children without a score are left out.

    Args:
        data: as `report_data` gives it.
        file: PNG or SVG.

    Raises:
        InputError: no child has both a score and a throughput.
        MissingDependencyError: matplotlib is absent.
    """
    shown = [
        child for child in data["children"] if child["score"] is not None and child["costs"][0]
    ]
    if not shown:
        raise InputError(
            "no child has both a score and a throughput", remedy="give --scores, or another --gpu"
        )
    groups = dict.fromkeys(child["group"] for child in shown if child["group"])
    lines = [
        sorted((*_place(c), c["status"] == "optimal") for c in shown if c["group"] == group)
        for group in groups
    ]
    marks = [
        Mark(x=x, y=y, name=child["name"], is_parent=child["kind"] == "parent")
        for child in shown
        if not child["group"]
        for x, y in [_place(child)]
    ]
    with Picture(file, title=_title(data, "scores", "cost")) as panel:
        draw_trade_off(panel, lines, marks)
        panel.set_xlabel(f"output tok/s/GPU in {_lengths(data)}")
        panel.set_ylabel(f"summed damage ({data['setting']['metric']})")


def serving_figure(data: dict[str, Any], file: Path) -> None:
    """Tok/s/GPU against tok/s/user in the first scenario: the parent and every named child.

    Args:
        data: as `report_data` gives it.
        file: PNG or SVG.

    Raises:
        InputError: neither fits the device, or nobody waits for a second token.
        MissingDependencyError: matplotlib is absent.
    """
    curves = {
        child["name"]: [(user, gpu, batch) for batch, _, user, gpu, _ in cost["serving"]]
        for child in data["children"]
        if child["kind"] != "frontier" and (cost := child["costs"][0]) and cost["serving"]
    }
    if not curves:
        raise InputError(
            f"nothing is served on {data['setting']['gpu']} in {_lengths(data)}",
            remedy="give more devices with --tp, another --gpu, or a longer output",
        )
    with Picture(file, title=f"{_title(data, 'cost')}, {_lengths(data)}") as panel:
        draw_rates(panel, curves)


def layers_figure(data: dict[str, Any], file: Path, *, name: str | None, unit: Unit) -> None:
    """What is left of every layer of one child, and what it saves of the parent's.

    Args:
        data: as `report_data` gives it.
        file: PNG or SVG.
        name: of the child; the first one's by default.
        unit: of the bars, in the first scenario at the child's operating point.

    Raises:
        InputError: no child has that name, or it does not fit the device.
        MissingDependencyError: matplotlib is absent.
    """
    child = _child(data, name)
    cost = child["costs"][0]
    if cost is None and unit != "parameters":
        raise InputError(
            f"{child['name']} does not fit {data['setting']['gpu']}",
            remedy="give more devices with --tp, another --gpu, or --unit parameters",
        )
    where = "" if unit == "parameters" else f", batch {cost['batch']}, TP {cost['tp']}"
    title = f"{child['name']}: {_title(data, 'cost')}{where}"
    with Picture(file, rows=2, height=3.8, title=title) as panels:
        for place, (subblock, panel) in enumerate(zip(("attention", "ffn"), panels, strict=True)):
            _draw_bars(panel, data, child, place, subblock, unit)
        panels[1].set_xlabel("layer")


def _draw_bars(
    panel: Any, data: dict[str, Any], child: dict[str, Any], place: int, subblock: str, unit: Unit
) -> None:
    key, scale, shown_unit = _UNITS[unit]
    variants = data["variants"][subblock]
    if unit == "parameters":
        prices = [variant["parameters"] for variant in variants]
    else:
        cost = child["costs"][0]
        prices = data["scenarios"][0]["prices"][f"{cost['batch']}x{cost['tp']}"][subblock][key]
    own = prices[data["children"][0]["blocks"][0][place]]
    drawn: dict[str, list[tuple[float, float, float, float]]] = {}
    first = 0
    for block in child["blocks"]:
        layers, left, change = block[2], prices[block[place]], variants[block[place]]["change"]
        middle, saved = first + (layers - 1) / 2, max(0.0, layers * own - left)
        drawn.setdefault(change, []).append((middle, layers - _GAP, left * scale, saved * scale))
        first += layers
    for change, colour in CHANGES.items():
        if change in drawn:
            x, width, left, saved = map(list, zip(*drawn[change], strict=True))
            of = f"{round(sum(width) + _GAP * len(width))} {_said(change, subblock)}"
            panel.bar(x, left, width, color=colour, label=of)
            panel.bar(x, saved, width, bottom=left, color=colour, alpha=0.26)
    panel.axhline(own * scale, color=MUTED, linewidth=0.8, linestyle=":")
    panel.set_ylabel(f"{'FFN' if subblock == 'ffn' else subblock}, {shown_unit}")
    panel.grid(visible=False, axis="x")
    panel.margins(x=0.01)
    panel.legend(
        frameon=False, ncols=4, fontsize=8, loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0
    )


def _said(change: str, subblock: str) -> str:
    if change == "reduced":
        return "fewer heads" if subblock == "attention" else "narrower"
    return change


def _child(data: dict[str, Any], name: str | None) -> dict[str, Any]:
    children: list[dict[str, Any]] = data["children"]
    if name is None:
        return children[min(1, len(children) - 1)]
    for child in children:
        if child["name"] == name:
            return child
    known = ", ".join(child["name"] for child in children[:8])
    raise InputError(f"no child is called {name!r}", remedy=f"use one of {known}")


def _place(child: dict[str, Any]) -> tuple[float, float]:
    return child["costs"][0]["tokens_per_second_per_gpu"], child["score"]


def _lengths(data: dict[str, Any]) -> str:
    return f"{data['scenarios'][0]['input_len']}/{data['scenarios'][0]['output_len']}"


def _title(data: dict[str, Any], *evidence: str) -> str:
    setting = data["setting"]
    known = ", ".join(f"{kind} {setting['evidence'][kind]}" for kind in evidence)
    return f"{data['name']} on {setting['gpu']}, {setting['dtype']}; {known}"
