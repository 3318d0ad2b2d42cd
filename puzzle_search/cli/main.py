"""``puzzle-search``: commands, and errors as one message with exit code 2."""

from __future__ import annotations

import io
import sys
from typing import NoReturn

import typer

from puzzle_search import __version__
from puzzle_search.cli.bench import bench_app
from puzzle_search.cli.build import build
from puzzle_search.cli.calibrate import calibrate
from puzzle_search.cli.checked import CheckedCommand
from puzzle_search.cli.compare import compare
from puzzle_search.cli.distill import distill
from puzzle_search.cli.doctor import doctor
from puzzle_search.cli.evaluate import evaluate
from puzzle_search.cli.explain import explain
from puzzle_search.cli.export import export
from puzzle_search.cli.frontier import frontier
from puzzle_search.cli.generate import generate
from puzzle_search.cli.import_ import import_app
from puzzle_search.cli.init import init
from puzzle_search.cli.inspect import inspect
from puzzle_search.cli.library import library
from puzzle_search.cli.plot import plot
from puzzle_search.cli.profile import profile
from puzzle_search.cli.refine import refine
from puzzle_search.cli.report import report
from puzzle_search.cli.run import run
from puzzle_search.cli.score import score
from puzzle_search.cli.serve import serve
from puzzle_search.cli.solve import solve
from puzzle_search.cli.solve_tables import solve_tables
from puzzle_search.cli.status import status
from puzzle_search.errors import PuzzleSearchError
from puzzle_search.packages import missing

_INTERRUPTED = 130  # typer's exit code after Ctrl-C

app = typer.Typer(
    help="Find, build and run the best child of a language model for a GPU and workload.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (
    solve, frontier, solve_tables, explain, compare, inspect, report, plot, run, status, profile,
    library, score, refine, build, distill, evaluate, calibrate, generate, export, doctor,
    init, serve,
):  # fmt: skip
    app.command(cls=CheckedCommand)(command)
app.add_typer(bench_app, name="bench")
app.add_typer(import_app, name="import")


@app.command()
def version() -> None:
    """Print the version."""
    print(__version__)


def main() -> None:
    """Run the command line."""
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
