"""``puzzle-search frontier``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from puzzle_search.choices import Axis
from puzzle_search.cli.options import BackendOption, JsonOption, RunArgument, folder_to_write
from puzzle_search.cli.question import QuestionOptions
from puzzle_search.cli.shared import takes

_ON_AXIS = {
    "throughput": ("target_tps", "target_speedup"),
    "memory": ("memory",),
    "latency": ("max_latency",),
}


@takes(QuestionOptions)
def frontier(
    asked: QuestionOptions,
    run: RunArgument = None,
    *,
    gpu: Annotated[
        str | None,
        typer.Option(
            help="GPU with a cost model, a profile folder, or a run directory. (default: h100)",
            show_default=False,
        ),
    ] = None,
    axis: Annotated[Axis, typer.Option(help="What quality is traded for.")] = "throughput",
    points: Annotated[int, typer.Option(help="At most so many, evenly by damage.", min=2)] = 50,
    start: Annotated[
        str | None,
        typer.Option(
            "--from",
            help="Where to begin: a value of the axis (tok/s/GPU, GB, ms), or of any measure: "
            "score=0.1, parameters=60, memory=70GB, speedup=1.2. (default: the least damage)",
            show_default=False,
        ),
    ] = None,
    end: Annotated[
        str | None,
        typer.Option(
            "--to",
            help="Where to end, likewise; score=inf is as far as it goes. (default: score=0.5)",
            show_default=False,
        ),
    ] = None,
    max_seconds: Annotated[float, typer.Option(help="Time limit of each point.")] = 10.0,
    backend: BackendOption = "scip",
    workers: Annotated[
        int | None, typer.Option(help="Processes. (default: one a processor)", min=1)
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for frontier.csv, frontier.json, frontier.png.",
            callback=folder_to_write("a frontier", "frontier.csv"),
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Trade quality for speed or memory: the best child at each of many limits, each proven."""
    from puzzle_search.progress import Progress
    from puzzle_search.report.frontier import FrontierReport
    from puzzle_search.solve.answers.frontier import frontier as find_frontier
    from puzzle_search.solve.question.ask import pose
    from puzzle_search.solve.question.ends import parse_end

    # A run asked for one place on the axis, this asks for all of them.
    posed = pose(asked.question(gpu=gpu, goal="score", run=run, without=_ON_AXIS[axis]))
    with Progress("frontier").over(points) as advance:
        found = find_frontier(
            posed.problem,
            axis=axis,
            points=points,
            start=None if start is None else parse_end(start, posed, axis),
            end=None if end is None else parse_end(end, posed, axis),
            max_seconds_per_point=max_seconds,
            backend=backend,
            workers=workers,
            progress=advance,
        )
    report = FrontierReport(axis=axis, points=tuple(found), asked=posed)
    if out is not None:
        report.write(out)
    if as_json:
        print(json.dumps(report.as_dict()))
        return
    print(report.table())
    if out is not None:
        print(f"written to {out}")
