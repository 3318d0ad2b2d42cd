"""``puzzle-search solve``."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from typing import Annotated

import typer

from puzzle_search.choices import Goal
from puzzle_search.cli.options import (
    SEARCH_PANEL,
    BackendOption,
    JsonOption,
    MaxSecondsOption,
    OutSpecOption,
    RunArgument,
)
from puzzle_search.cli.question import QuestionOptions
from puzzle_search.cli.shared import takes


@takes(QuestionOptions)
def solve(
    asked: QuestionOptions,
    run: RunArgument = None,
    *,
    gpu: Annotated[
        str | None,
        typer.Option(
            help="GPU with a cost model, a profile folder, or a run directory. Several, cheapest "
            "first (l40s,h100) or priced (l40s=0.9,h100=2.5): the cheapest that will do. "
            "(default: h100)",
            show_default=False,
        ),
    ] = None,
    goal: Annotated[
        Goal | None,
        typer.Option(
            help="What is made best. (default: score)",
            rich_help_panel=SEARCH_PANEL,
            show_default=False,
        ),
    ] = None,
    solutions: Annotated[
        int, typer.Option(help="How many answers.", min=1, rich_help_panel=SEARCH_PANEL)
    ] = 1,
    min_distance: Annotated[
        int | None,
        typer.Option(
            help="Layers in which several answers differ. (default: 1)",
            min=1,
            rich_help_panel=SEARCH_PANEL,
        ),
    ] = None,
    certainty: Annotated[
        int,
        typer.Option(
            help="Draw the scores so often within their standard errors, and say what holds.",
            min=0,
            rich_help_panel=SEARCH_PANEL,
        ),
    ] = 0,
    max_seconds: MaxSecondsOption = 60.0,
    backend: BackendOption = "scip",
    out: OutSpecOption = None,
    as_json: JsonOption = False,
) -> None:
    """Find the architecture that keeps the most quality within the limits, proven optimal."""
    from puzzle_search.errors import InputError
    from puzzle_search.files import is_stream
    from puzzle_search.solve.question.ask import ask_for_several
    from puzzle_search.solve.question.fleet import ask_fleet, cheapest, parse_offers

    if min_distance is not None and solutions == 1:
        raise InputError(
            "--min-distance is between several answers", remedy="ask for them with --solutions"
        )
    question = replace(asked.question(gpu=gpu, goal=goal, run=run), certainty=certainty)
    offers = parse_offers(gpu) if gpu else []
    if len(offers) > 1 or (offers and offers[0].usd_per_hour is not None):
        if solutions > 1:
            raise InputError("several GPUs give one answer each", remedy="name one GPU, unpriced")
        quotes = ask_fleet(question, offers, max_seconds=max_seconds, backend=backend)
        chosen = cheapest(quotes)
        assert chosen.answer is not None
        answers = [chosen.answer]
        shown = {"cheapest": chosen.offer.gpu, "gpus": [quote.as_dict() for quote in quotes]}
    else:
        quotes = []
        answers = ask_for_several(
            question, solutions, min_distance or 1, max_seconds=max_seconds, backend=backend
        )
        shown = answers[0].as_dict()
        if len(answers) < solutions:
            said = f"{len(answers)} answers differ so much, or were found in time"
            print(f"note: only {said}", file=sys.stderr)
        if solutions > 1:
            shown["solutions"] = [answer.as_dict() for answer in answers]
    if out is not None:
        answers[0].spec.write(out)
        if is_stream(out):
            return
    if as_json:
        print(json.dumps(shown))
        return
    from puzzle_search.cli.print_answer import print_answer, print_pool, print_quotes

    if quotes:
        print_quotes(quotes, chosen)
    print_answer(answers[0])
    if len(answers) > 1:
        print_pool(answers)
    if out is not None:
        print(f"written to {out}")
