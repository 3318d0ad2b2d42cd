"""``puzzle-search status``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from puzzle_search.cli.next_step import quoted, tell_next
from puzzle_search.cli.options import JsonOption

if TYPE_CHECKING:
    from puzzle_search.pipeline.status import RunStatus


def status(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run directory.")],
    as_json: JsonOption = False,
) -> None:
    """Say how far a run is: what is done, what it took and gave, what is left."""
    from puzzle_search.pipeline.status import run_status

    found = run_status(run)
    if as_json:
        print(json.dumps(found.as_dict()))
        return
    done = sum(stage.state == "done" for stage in found.stages)
    at_work = ", at work now" if found.running else ""
    print(f"{run}: {done} of {len(found.stages)} stages done{at_work}")
    for stage in found.stages:
        took = "" if stage.seconds is None else _time(stage.seconds)
        print(f"  {stage.name:9} {stage.state:11} {took:>9}  {stage.gave}".rstrip())
    tell_next(*_next(found))


def _time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"


def _next(found: RunStatus) -> list[str]:
    run = quoted(found.folder)
    if found.running:
        return [f"puzzle-search status {run}"]
    if not found.is_done:
        recipe = "RECIPE" if found.recipe is None else quoted(found.recipe)
        return [f"puzzle-search run {recipe} --run-dir {run}"]
    return [
        f"puzzle-search explain {run}",
        f"puzzle-search report {run} --out report.html",
    ]
