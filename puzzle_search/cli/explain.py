"""``puzzle-search explain``."""

from __future__ import annotations

import json
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from puzzle_search.cli.options import ChildArgument, JsonOption
from puzzle_search.cli.setting import SettingChoice
from puzzle_search.cli.shared import takes

if TYPE_CHECKING:
    from rich.console import Console

    from puzzle_search.explain.layers import BlockExplanation, Explanation
    from puzzle_search.explain.tables import ProblemExplanation

_BYTES = {"MB": 1e6, "MiB": 2.0**20}
_SAME_THROUGHPUT = 0.005
_TABLE_WIDTH = 58  # of the table of layers; where two fit, they stand side by side


@takes(SettingChoice)
def explain(
    held: SettingChoice,
    spec: ChildArgument,
    problem: Annotated[
        Path | None,
        typer.Option(help="Folder of 'import', whose costs and scores stand for all the above."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show what a child keeps of its parent, layer by layer, and what that saves and costs."""
    from puzzle_search.errors import InputError
    from puzzle_search.explain.layers import explain as explain_spec
    from puzzle_search.explain.tables import explain_problem
    from puzzle_search.solve.question.children import find_child
    from puzzle_search.solve.question.setting import find_setting

    found = find_child(spec)
    read = found.spec
    if problem is not None:
        if held.asked().anything:
            raise InputError(
                "--problem has costs and scores of its own", remedy="drop the other options"
            )
        by_tables = explain_problem(read, problem)
        if as_json:
            print(json.dumps(by_tables.as_dict()))
        else:
            _print_problem(by_tables, str(spec))
        return
    setting = find_setting([read], held.asked(found.home))
    explanation = explain_spec(read, setting)
    if as_json:
        print(json.dumps(explanation.as_dict()))
    else:
        _print(explanation, str(spec))


def _print(explanation: Explanation, name: str) -> None:
    from rich.console import Console

    from puzzle_search.cli.scenario_table import scenario_table

    console = Console(highlight=False)
    setting, spec = explanation.setting, explanation.spec
    parent, child = explanation.parameters
    parent_kv, child_kv = explanation.kv_bytes_per_token
    cost = explanation.child[0]
    console.print(
        f"{name}: {setting.config.name} with {child / 1e9:.2f} B of {parent / 1e9:.2f} B "
        f"parameters ({child / parent:.0%}),\n"
        f"KV cache {child_kv / 1e3:,.1f} of {parent_kv / 1e3:,.1f} kB a token "
        f"({child_kv / parent_kv:.0%}) in {setting.target.dtype.name}\n",
        markup=False,
    )
    _print_map(explanation.blocks, console)
    console.print(
        f"\nsaved against the parent's block on each device, in {cost.scenario} at batch "
        f"{cost.point.batch} x TP {cost.point.tp}:"
    )
    _print_layers(explanation.blocks, console)
    for costs in zip(explanation.parent, explanation.child, strict=True):
        console.print()
        console.print(scenario_table(str(costs[1].scenario), ("parent", "child"), costs))
    lines = ["scores: none given"]
    if setting.scores is not None:
        lines = [f"scores: {setting.scores.evidence} ({setting.scores.sidecar['data']})"]
    lines.append(f"cost: {setting.target.latency.evidence} ({setting.target.gpu})")
    status, score = spec.solution.get("status"), spec.solution.get("score")
    if isinstance(score, float):
        lines.append(f"answer: {status}, score {score:.5g} when it was solved")
    for cost, solved in zip(explanation.child, explanation.throughput_when_solved, strict=True):
        if solved and abs(cost.tokens_per_second_per_gpu / solved - 1) > _SAME_THROUGHPUT:
            lines.append(
                f"{cost.scenario} was predicted at {solved:,.0f} tok/s/GPU when it was solved, by "
                "other costs than these"
            )
    _print_evidence(lines, console)


def _print_problem(explanation: ProblemExplanation, name: str) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    costs, parent, child = explanation.costs, explanation.parent, explanation.child
    console.print(f"{name}: {explanation.spec.parent} by {costs.source}\n", markup=False)
    _print_map(explanation.blocks, console)
    console.print(
        f"\nsaved against the parent's block, at batch {costs.batch} and {costs.sequence_length} "
        "tokens:"
    )
    _print_layers(explanation.blocks, console, unit="MiB")
    table = Table(box=None, pad_edge=False)
    for heading in ("", "parent", "child", "ratio"):
        table.add_column(heading, justify="right" if heading else "left")
    for label, field, unit in (
        ("runtime, ms", "runtime_us", 1e3),
        ("memory, MiB", "memory_bytes", _BYTES["MiB"]),
        ("parameters, M", "parameters", 1e6),
    ):
        values = [getattr(usage, field) for usage in (parent, child)]
        if None not in values:
            ratio = f"{values[1] / values[0]:.2f} x" if values[0] else ""
            table.add_row(label, *(f"{value / unit:,.1f}" for value in values), ratio)
    console.print()
    console.print(table)
    if not costs.has_runtime:
        console.print("the block costs have no runtimes")
    _print_evidence(
        [
            f"scores: {explanation.scores.evidence} ({explanation.scores.sidecar['data']})",
            f"cost: {costs.evidence} ({costs.gpu or 'device not told'}, {costs.dtype})",
            *([costs.notes] if costs.notes else []),
        ],
        console,
    )


def _print_map(blocks: tuple[BlockExplanation, ...], console: Console) -> None:
    from puzzle_search.cli.layer_map import layer_map, legend, shows_bars

    layers = [block for block in blocks for _ in block.layers]
    rows = {
        "attention": [block.attention for block in layers],
        "ffn": [block.ffn for block in layers],
    }
    plain = not shows_bars(console.encoding)
    for line in layer_map(rows, console.width, plain=plain):
        console.print(line)
    console.print(legend(plain=plain), style="dim")


def _print_layers(
    blocks: tuple[BlockExplanation, ...], console: Console, *, unit: str = "MB"
) -> None:
    from rich.columns import Columns
    from rich.table import Table

    rows = _rows(blocks, _BYTES[unit])
    side_by_side = console.width >= 2 * _TABLE_WIDTH + 4 and len(rows) > 20
    middle = (len(rows) + 1) // 2 if side_by_side else len(rows)
    tables = []
    for part in (rows[:middle], rows[middle:]):
        table = Table(box=None, pad_edge=False)
        for heading in ("layer", "attention", "ffn", "damage", "time, ms", f"memory, {unit}"):
            left = heading in ("layer", "attention", "ffn")
            table.add_column(heading, justify="left" if left else "right", no_wrap=True)
        for row in part:
            table.add_row(*row)
        if part:
            tables.append(table)
    console.print(Columns(tables, padding=(0, 4)) if side_by_side else tables[0])


def _rows(blocks: tuple[BlockExplanation, ...], unit_bytes: float) -> list[list[str]]:
    """A row for every block that is not the parent's, one for every run of those that are."""
    rows = []
    for unchanged, run in groupby(blocks, key=lambda block: block.unchanged):
        same = list(run)
        if unchanged:
            rows.append([_layers(same), "kept", "kept", "", "", ""])
            continue
        for block in same:
            changes = (block.attention, block.ffn)
            several = len(block.layers) > 1
            rows.append(
                [
                    _layers([block]),
                    *(c.variant if c.change != "kept" or several else "kept" for c in changes),
                    _shown(block.damage, ".5f"),
                    _shown(block.saved_us, ",.1f", 1e3),
                    f"{block.saved_bytes / unit_bytes:,.1f}",
                ]
            )
    damage = _sum([block.damage for block in blocks])
    saved_us = _sum([block.saved_us for block in blocks])
    saved_bytes = sum(block.saved_bytes for block in blocks)
    last = ["sum", "", "", _shown(damage, ".5f"), _shown(saved_us, ",.1f", 1e3)]
    return [*rows, [*last, f"{saved_bytes / unit_bytes:,.1f}"]]


def _sum(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None


def _shown(value: float | None, form: str, unit: float = 1.0) -> str:
    return "not known" if value is None else f"{value / unit:{form}}"


def _layers(blocks: list[BlockExplanation]) -> str:
    first, last = blocks[0].layers[0], blocks[-1].layers[-1]
    return str(first) if first == last else f"{first}-{last}"


def _print_evidence(lines: list[str], console: Console) -> None:
    from rich.markup import escape
    from rich.table import Table

    table = Table.grid(padding=(0, 1))
    for heading, line in zip(("evidence", *[""] * len(lines)), lines, strict=False):
        table.add_row(heading, escape(line))
    console.print()
    console.print(table)
