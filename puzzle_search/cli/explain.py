"""``puzzle-search explain``."""

from __future__ import annotations

import json
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from puzzle_search.cli.options import (
    JsonOption,
    SettingDtypeOption,
    SettingEngineOption,
    SettingGpuOption,
    SettingModelOption,
    SettingScenarioOption,
    SettingScoresOption,
    SettingTpOption,
)

if TYPE_CHECKING:
    from rich.console import Console

    from puzzle_search.solve.explain import BlockExplanation, Explanation

_TABLE_WIDTH = 58  # of the table of layers; where two fit, they stand side by side


def explain(
    spec: Annotated[Path, typer.Argument(help="Architecture spec (YAML).")],
    model: SettingModelOption = None,
    gpu: SettingGpuOption = None,
    scenario: SettingScenarioOption = None,
    engine: SettingEngineOption = None,
    dtype: SettingDtypeOption = None,
    tp: SettingTpOption = None,
    scores: SettingScoresOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what a child keeps of its parent, layer by layer, and what that saves and costs."""
    from puzzle_search.arch import ArchitectureSpec
    from puzzle_search.solve.explain import explain as explain_spec
    from puzzle_search.solve.setting import find_setting

    read = ArchitectureSpec.from_file(spec)
    setting = find_setting(
        [read],
        model=model,
        gpu=gpu,
        scenarios=scenario or [],
        engine=engine,
        dtype=dtype,
        tp=tp,
        scores=str(scores) if scores else None,
    )
    explanation = explain_spec(read, setting)
    if as_json:
        print(json.dumps(explanation.as_dict()))
        return
    _print(explanation, str(spec))


def _print(explanation: Explanation, name: str) -> None:
    from rich.console import Console

    from puzzle_search.cli.layer_map import LEGEND, layer_map
    from puzzle_search.cli.scenario_table import scenario_table

    console = Console(highlight=False)
    setting = explanation.setting
    parent, child = explanation.parameters
    parent_kv, child_kv = explanation.kv_bytes_per_token
    console.print(
        f"{name}: {setting.config.name} with {child / 1e9:.2f} B of {parent / 1e9:.2f} B "
        f"parameters ({child / parent:.0%}),",
        markup=False,
    )
    console.print(
        f"KV cache {child_kv / 1e3:,.1f} of {parent_kv / 1e3:,.1f} kB a token "
        f"({child_kv / parent_kv:.0%}) in {setting.target.dtype.name}\n",
        markup=False,
    )
    layers = [block for block in explanation.blocks for _ in block.layers]
    rows = {
        "attention": [block.attention for block in layers],
        "ffn": [block.ffn for block in layers],
    }
    for line in layer_map(rows, console.width):
        console.print(line)
    console.print(LEGEND, style="dim")
    _print_layers(explanation, console)
    for costs in zip(explanation.parent, explanation.child, strict=True):
        console.print()
        console.print(scenario_table(str(costs[1].scenario), ("parent", "child"), costs))
    _print_evidence(explanation, console)


def _print_layers(explanation: Explanation, console: Console) -> None:
    from rich.columns import Columns
    from rich.table import Table

    cost = explanation.child[0]
    console.print(
        f"\nsaved against the parent's block on each device, in {cost.scenario} at batch "
        f"{cost.point.batch} x TP {cost.point.tp}:"
    )
    rows = list(_rows(explanation.blocks))
    side_by_side = console.width >= 2 * _TABLE_WIDTH + 4 and len(rows) > 20
    middle = (len(rows) + 1) // 2 if side_by_side else len(rows)
    tables = []
    for part in (rows[:middle], rows[middle:]):
        table = Table(box=None, pad_edge=False)
        for heading in ("layer", "attention", "ffn", "damage", "time, ms", "memory, MB"):
            left = heading in ("layer", "attention", "ffn")
            table.add_column(heading, justify="left" if left else "right", no_wrap=True)
        for row in part:
            table.add_row(*row)
        if part:
            tables.append(table)
    console.print(Columns(tables, padding=(0, 4)) if side_by_side else tables[0])


def _rows(blocks: tuple[BlockExplanation, ...]) -> list[list[str]]:
    """A row for every block that is not the parent's, one for every run of those that are."""
    rows = []
    for unchanged, run in groupby(blocks, key=lambda block: block.unchanged):
        same = list(run)
        if unchanged:
            rows.append([_layers(same), "kept", "kept", "", "", ""])
            continue
        rows += [
            [
                _layers([block]),
                "kept" if block.attention.change == "kept" else block.attention.variant,
                "kept" if block.ffn.change == "kept" else block.ffn.variant,
                "not known" if block.damage is None else f"{block.damage:.5f}",
                f"{block.saved_us / 1e3:,.1f}",
                f"{block.saved_bytes / 1e6:,.1f}",
            ]
            for block in same
        ]
    damages = [block.damage for block in blocks if block.damage is not None]
    rows.append(
        [
            "sum",
            "",
            "",
            f"{sum(damages):.5f}" if len(damages) == len(blocks) else "not known",
            f"{sum(block.saved_us for block in blocks) / 1e3:,.1f}",
            f"{sum(block.saved_bytes for block in blocks) / 1e6:,.1f}",
        ]
    )
    return rows


def _layers(blocks: list[BlockExplanation]) -> str:
    first, last = blocks[0].layers[0], blocks[-1].layers[-1]
    return str(first) if first == last else f"{first}-{last}"


def _print_evidence(explanation: Explanation, console: Console) -> None:
    from rich.markup import escape
    from rich.table import Table

    setting, solution = explanation.setting, explanation.spec.solution
    lines = ["scores: none given"]
    if setting.scores is not None:
        lines = [f"scores: {setting.scores.evidence} ({setting.scores.sidecar['data']})"]
    lines.append(f"cost: {setting.target.latency.evidence} ({setting.target.gpu})")
    status, score = solution.get("status"), solution.get("score")
    if isinstance(score, float):
        lines.append(f"answer: {status}, score {score:.5g} when it was solved")
    table = Table.grid(padding=(0, 1))
    for heading, line in zip(("evidence", *[""] * len(lines)), lines, strict=False):
        table.add_row(heading, escape(line))
    console.print()
    console.print(table)
