"""``puzzle-search``: commands, and errors as one message with exit code 2."""

from __future__ import annotations

import gc
import io
import os
import sys
from typing import NoReturn

import typer

from puzzle_search import __version__
from puzzle_search.cli.commands import CommandGroup
from puzzle_search.errors import PuzzleSearchError
from puzzle_search.packages import missing

_INTERRUPTED = 130  # typer's exit code after Ctrl-C

app = typer.Typer(
    cls=CommandGroup,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def _all_commands() -> None:
    """Find, build and run the best child of a language model for a GPU and workload."""


@app.command()
def version() -> None:
    """Print the version."""
    print(__version__)


def main() -> None:
    """Run the command line."""
    # Start-up: collections of garbage during imports and a look for plugins take a tenth of it.
    gc.set_threshold(100_000)
    os.environ["PYDANTIC_DISABLE_PLUGINS"] = "1"
    # What a terminal or pipe cannot show must not end a command.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace" if stream is sys.stderr else "replace")
    try:
        app()
    except PuzzleSearchError as error:
        _fail(str(error))
    except ModuleNotFoundError as error:
        _fail(str(missing(error)))
    except OSError as error:  # of the user's disk and paths
        _fail(f"{error}\n  remedy: check that path, its permissions and the space left")
    except SystemExit as error:
        if error.code == _INTERRUPTED:
            print("interrupted; run the same command again to go on", file=sys.stderr)
        raise


def _fail(message: str) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)
