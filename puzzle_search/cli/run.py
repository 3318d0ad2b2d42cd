"""``puzzle-search run``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from puzzle_search.cli.next_step import quoted, tell_next
from puzzle_search.cli.options import JsonOption


def run(
    recipe: Annotated[Path, typer.Argument(help="Recipe (YAML).")],
    run_dir: Annotated[
        Path | None, typer.Option(help="Run directory; runs/<recipe name> by default.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Run a recipe: profile, library, score, solve, build, distill, export, measure, generate.

    Run again after an interruption and it goes on where it was.
    """
    from puzzle_search.pipeline.recipes.recipe import read_recipe
    from puzzle_search.pipeline.run import run_recipe

    parsed = read_recipe(recipe)
    folder = run_dir or Path("runs") / parsed.name
    result = run_recipe(parsed, folder)
    if as_json:
        print(
            json.dumps(
                result.comparison.as_dict()
                | {"child": str(result.child), "served": str(result.served)}
            )
        )
        return
    from rich.console import Console
    from rich.table import Table

    from puzzle_search.report.comparison import cells_of

    console = Console()
    if result.skipped:
        console.print(f"already done: {', '.join(result.skipped)}")
    if result.removed:
        console.print(f"removed, made from what has changed: {', '.join(result.removed)}")
    for sample in result.samples:
        console.print(
            "[bold]" + _escape(sample["prompt"]) + "[/bold]" + _escape(sample["completion"])
        )
        console.rule()
    table = Table(title="predicted against measured")
    for heading in ("", "predicted", "measured", "error"):
        table.add_column(heading, justify="right" if heading else "left")
    for row in result.comparison.rows():
        table.add_row(row.what, *cells_of(row))
    console.print(table)
    for note in result.comparison.notes():
        console.print(f"  {note}", highlight=False)
    served = None if result.served == result.child else result.served
    file = "" if served is None else f"   {served}"
    console.print(f"child: {result.child}{file}   report: {folder / 'report.md'}")
    tell_next(
        f"puzzle-search explain {quoted(folder)}",
        f"puzzle-search generate {quoted(folder if served is None else served)} --prompt ...",
        f"puzzle-search report {quoted(folder)} --out report.html",
    )


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(text)
