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
)

# What --run stands for.
_NOT_OF_RUNS = {
    "model", "gpu", "scenario", "engine", "dtype", "tp", "target_tps", "limit", "portable",
    "scores", "metric",
}  # fmt: skip


def frontier(
    context: typer.Context,
    model: AskedModelOption = "llama-3.1-70b",
    gpu: Annotated[str, typer.Option(help="GPU with a cost model, or a profile folder.")] = "h100",
    run: Annotated[
        Path | None,
        typer.Option(help="Run directory: around its child, instead of model, GPU and scenario."),
    ] = None,
    axis: Annotated[
        str, typer.Option(help="What quality is traded for: throughput, memory or latency.")
    ] = "throughput",
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
            help="Where to end, likewise; score=inf is as far as it goes. (default: score=1)",
            show_default=False,
        ),
    ] = None,
    scenario: AskedScenarioOption = None,
    engine: AskedEngineOption = None,
    dtype: AskedDtypeOption = None,
    tp: AskedTpOption = "1",
    target_tps: Annotated[
        float | None,
        typer.Option(help="Output tokens/s per GPU, at least; of other axes than throughput."),
    ] = None,
    target_speedup: Annotated[
        float | None, typer.Option(help="The same, as a multiple of the parent's.")
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
        Path | None, typer.Option(help="Folder for frontier.csv, frontier.json, frontier.png.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Trade quality for speed or memory: the best child at each of many limits, each proven."""
    from puzzle_search.progress import Progress
    from puzzle_search.report.frontier import FrontierReport
    from puzzle_search.report.page.run_folder import RunFolder
    from puzzle_search.solve import ChildLimits, Limits
    from puzzle_search.solve.answers.frontier import frontier as find_frontier
    from puzzle_search.solve.answers.frontier import parse_axis
    from puzzle_search.solve.question.ask import Question, pose
    from puzzle_search.solve.question.ends import parse_end, with_speedup
    from puzzle_search.solve.question.parse import parse_scenario

    limits = Limits(tokens_per_second_per_gpu=target_tps)
    if run is not None:
        _only_of_runs(context)
        asked = RunFolder.open(run).asked()
    else:
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
    if target_speedup is not None:
        asked = with_speedup(asked, target_speedup)
    chosen = parse_axis(axis)
    with Progress("frontier").over(points) as advance:
        found = find_frontier(
            asked.problem,
            axis=chosen,
            points=points,
            start=None if start is None else parse_end(start, asked, chosen),
            end=None if end is None else parse_end(end, asked, chosen),
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


def _only_of_runs(context: typer.Context) -> None:
    from puzzle_search.errors import InputError

    given = {
        name
        for name in context.params
        if getattr(context.get_parameter_source(name), "name", "") == "COMMANDLINE"
    }
    if other := sorted(given & _NOT_OF_RUNS):
        names = ", ".join("--" + name.replace("_", "-") for name in other)
        raise InputError(
            f"{names}: a run has a model, device, workload and scores of its own",
            remedy="drop --run, or these",
        )
