"""``puzzle-search frontier``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from puzzle_search.cli.options import (
    AskedDtypeOption,
    AskedEngineOption,
    AskedModelOption,
    AskedScenarioOption,
    AskedTpOption,
    JsonOption,
    folder_to_write,
)


def frontier(
    model: AskedModelOption = "llama-3.1-70b",
    gpu: Annotated[str, typer.Option(help="GPU with a cost model, or a profile folder.")] = "h100",
    axis: Annotated[
        str, typer.Option(help="What quality is traded for: throughput, memory or latency.")
    ] = "throughput",
    points: Annotated[int, typer.Option(help="How many, evenly spaced.", min=2)] = 200,
    lowest: Annotated[
        float | None, typer.Option("--from", help="First value: tok/s/GPU, GB or ms.")
    ] = None,
    highest: Annotated[float | None, typer.Option("--to", help="Last value.")] = None,
    scenario: AskedScenarioOption = None,
    engine: AskedEngineOption = None,
    dtype: AskedDtypeOption = None,
    tp: AskedTpOption = "1",
    target_tps: Annotated[
        float | None, typer.Option(help="Output tokens/s per GPU, at least.")
    ] = None,
    limit: Annotated[
        list[str] | None,
        typer.Option(help="""Linear: 'sum(attention == "no_op") <= 20'; again for more."""),
    ] = None,
    portable: Annotated[
        str | None, typer.Option(help="Engine that must load the children.")
    ] = None,
    scores: Annotated[
        Path | None, typer.Option(help="Score table instead of the model's own.")
    ] = None,
    metric: Annotated[str, typer.Option(help="Metric of the score table, or a mix.")] = "kl",
    max_seconds: Annotated[float, typer.Option(help="Time limit of each point.")] = 10.0,
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
    from puzzle_search.solve import ChildLimits, Limits
    from puzzle_search.solve.answers.frontier import frontier as find_frontier
    from puzzle_search.solve.answers.frontier import parse_axis
    from puzzle_search.solve.question.ask import Question, pose
    from puzzle_search.solve.question.parse import parse_scenario

    limits = Limits(tokens_per_second_per_gpu=target_tps)
    asked = pose(
        Question(
            model=model,
            gpu=gpu,
            scenarios=[parse_scenario(text, limits) for text in scenario or ["128/1024"]],
            child=ChildLimits(linear=tuple(limit or ()), portable_to=portable),
            engine=engine,
            dtype=dtype,
            tp=tp,
            scores=str(scores) if scores else None,
            metric=metric,
        )
    )
    chosen = parse_axis(axis)
    unit = 1e9 if chosen == "memory" else 1.0
    with Progress("frontier").over(points) as advance:
        found = find_frontier(
            asked.problem,
            axis=chosen,
            points=points,
            lowest=None if lowest is None else lowest * unit,
            highest=None if highest is None else highest * unit,
            max_seconds_per_point=max_seconds,
            workers=workers,
            progress=advance,
        )
    report = FrontierReport(axis=chosen, points=tuple(found), asked=asked)
    if out is not None:
        report.write(out)
    if as_json:
        print(json.dumps(report.as_dict()))
        return
    print(report.table())
    if out is not None:
        print(f"written to {out}")
