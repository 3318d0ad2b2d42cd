"""``puzzle-search report``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from puzzle_search.cli.options import JsonOption, ShownSources
from puzzle_search.cli.setting import SettingChoice
from puzzle_search.cli.shared import takes


@takes(SettingChoice)
def report(
    held: SettingChoice,
    sources: ShownSources,
    out: Annotated[Path, typer.Option(help="The page to write.")] = Path("report.html"),
    as_json: JsonOption = False,
) -> None:
    """Write one page to look at: frontier, layers, serving, memory, and what was measured.

    It holds everything that it needs and opens from disk. --json prints its data instead.
    """
    from puzzle_search.errors import InputError
    from puzzle_search.files import write_text
    from puzzle_search.report.page.data import report_data
    from puzzle_search.report.page.render import render_page
    from puzzle_search.report.page.sources import find_sources

    if out.is_dir():
        raise InputError(f"--out {out} is a folder", remedy="name a file")
    data = report_data(find_sources(sources, held.asked()))
    if as_json:
        print(json.dumps(data, allow_nan=False))
        return
    write_text(out, render_page(data))
    print(f"written to {out.resolve()}")
