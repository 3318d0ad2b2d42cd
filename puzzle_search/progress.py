"""Progress of long work: a bar with the time left, quiet where no one looks."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as RichProgress


class Progress:
    """One bar on standard error; in a pipe, a line at each tenth instead.

    Args:
        title: what is being done.
    """

    def __init__(self, title: str) -> None:
        self._title = title

    @contextlib.contextmanager
    def over(self, total: int, done: int = 0) -> Iterator[Callable[[str], None]]:
        """Yield a function that advances by one unit and says what was done."""
        console = Console(stderr=True)
        if not console.is_terminal:
            yield self._plain(total, done)
            return
        bar = RichProgress(
            TextColumn("{task.description:24}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[unit]}"),
            console=console,
        )
        with bar:
            task = bar.add_task(self._title, total=total, completed=done, unit="")
            yield lambda unit: bar.update(task, advance=1, unit=unit)

    def _plain(self, total: int, done: int) -> Callable[[str], None]:
        finished = done

        def advance(unit: str) -> None:
            nonlocal finished
            finished += 1
            if finished * 10 // total != (finished - 1) * 10 // total:
                print(f"{self._title}: {finished}/{total} ({unit})", file=sys.stderr, flush=True)

        return advance
