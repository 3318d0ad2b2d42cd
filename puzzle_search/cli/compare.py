"""``puzzle-search compare``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from puzzle_search.cli.options import ChildArgument, JsonOption
from puzzle_search.cli.setting import SettingChoice
from puzzle_search.cli.shared import takes

if TYPE_CHECKING:
    from rich.console import Console

    from puzzle_search.arch import BlockChoice, Subblock
    from puzzle_search.explain.compare import SpecComparison

_SUBBLOCKS: tuple[Subblock, Subblock] = ("attention", "ffn")


@takes(SettingChoice)
def compare(
    held: SettingChoice,
    first: ChildArgument,
    second: ChildArgument,
    as_json: JsonOption = False,
) -> None:
    """Put two children side by side: layers that differ, variants, sizes and predicted cost."""
    from puzzle_search.explain.compare import compare as compare_specs
    from puzzle_search.solve.question.children import common_home, find_child
    from puzzle_search.solve.question.setting import find_setting

    found = [find_child(path) for path in (first, second)]
    specs = [child.spec for child in found]
    setting = find_setting(specs, held.asked(common_home(found)))
    comparison = compare_specs(specs[0], specs[1], setting, any_parent=held.model is not None)
    if as_json:
        print(json.dumps(comparison.as_dict()))
        return
    _print(comparison, _names(first, second))


def _names(first: Path, second: Path) -> tuple[str, str]:
    """File names without suffix; whole paths where those are the same."""
    if first.stem != second.stem:
        return first.stem, second.stem
    return str(first), str(second)


def _print(comparison: SpecComparison, names: tuple[str, str]) -> None:
    from rich.console import Console
    from rich.table import Table

    from puzzle_search.cli.layer_map import layer_map, legend, shows_bars
    from puzzle_search.cli.scenario_table import scenario_table

    console = Console(highlight=False)
    agreement, layers = comparison.agreement, comparison.layers
    console.print(
        f"1: {names[0]}, 2: {names[1]}, children of {comparison.setting.config.name}", markup=False
    )
    console.print(
        f"the same attention in {agreement['attention']} of {layers} layers, the same FFN in "
        f"{agreement['ffn']} of {layers}\n"
    )
    rows = {
        f"{subblock} {number}": comparison.changes(subblock, number - 1)
        for subblock in _SUBBLOCKS
        for number in (1, 2)
    }
    plain = not shows_bars(console.encoding)
    for line in layer_map(rows, console.width, plain=plain):
        console.print(line)
    console.print(f"{legend(plain=plain)}\n", style="dim")
    table = Table(box=None, pad_edge=False)
    for heading in ("", *names):
        table.add_column(heading, justify="right" if heading else "left", overflow="fold")
    table.add_row("parameters, B", *(f"{count / 1e9:.2f}" for count in comparison.parameters))
    kv_bytes = comparison.kv_bytes_per_token
    table.add_row("KV cache, kB a token", *(f"{count / 1e3:,.1f}" for count in kv_bytes))
    scores = comparison.scores
    table.add_row("score", *("not known" if s is None else f"{s:.5g}" for s in scores))
    for subblock in _SUBBLOCKS:
        for variant, counts in comparison.counts(subblock).items():
            table.add_row(f"{subblock} {variant}", *(str(count or "") for count in counts))
    console.print(table)
    for scenario, costs in comparison.costs.items():
        console.print()
        console.print(scenario_table(str(scenario), names, costs))
    _print_differences(comparison, names, console)
    evidence = comparison.setting.evidence
    console.print(
        f"\nevidence: scores {evidence['scores'] or 'none given'}, cost {evidence['cost']}; each "
        "at its own best batch size"
    )


def _print_differences(
    comparison: SpecComparison, names: tuple[str, str], console: Console
) -> None:
    from rich.columns import Columns
    from rich.table import Table

    rows = [
        (str(pair.layer), _described(pair.first), _described(pair.second))
        for pair in comparison.differences
    ]
    console.print(f"\n{len(rows)} of {comparison.layers} layers differ{':' if rows else ''}")
    if not rows:
        return
    side_by_side = console.width >= 110 and len(rows) > 20
    middle = (len(rows) + 1) // 2 if side_by_side else len(rows)
    tables = []
    for part in (rows[:middle], rows[middle:]):
        table = Table(box=None, pad_edge=False)
        for heading in ("layer", *names):
            table.add_column(heading, overflow="fold")
        for row in part:
            table.add_row(*row)
        if part:
            tables.append(table)
    console.print(Columns(tables, padding=(0, 4)))


def _described(block: BlockChoice) -> str:
    span = f" (layers {block.layers[0]}-{block.layers[-1]})" if len(block.layers) > 1 else ""
    return f"{block.attention}, {block.ffn}{span}"
