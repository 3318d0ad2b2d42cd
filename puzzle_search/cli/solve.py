"""``puzzle-search solve``."""

from __future__ import annotations

import json
import sys
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
    text_to_write,
)

_SERVING, _CHILD, _SEARCH = "Limits of serving", "Limits of the child", "Search"
_ROUNDS = "Rounds: measure the child, score around it, solve again"


# Options that mean something to imported tables.
_OF_TABLES = {
    "problem", "memory", "runtime", "max_params", "max_score", "limit", "freeze", "goal", "metric",
    "max_seconds", "backend", "out", "as_json",
}  # fmt: skip


def solve(
    context: typer.Context,
    target_tps: Annotated[
        float | None, typer.Option(help="Output tokens/s per GPU, at least.")
    ] = None,
    model: AskedModelOption = "llama-3.1-70b",
    gpu: Annotated[
        str,
        typer.Option(
            help="GPU with a cost model, or a profile folder. Several, cheapest first "
            "(l40s,h100) or priced (l40s=0.9,h100=2.5): the cheapest that will do."
        ),
    ] = "h100",
    scenario: AskedScenarioOption = None,
    engine: AskedEngineOption = None,
    dtype: AskedDtypeOption = None,
    tp: AskedTpOption = "1",
    margin: Annotated[
        str, typer.Option(help="Keep predictions this far from their limits, e.g. 5%.")
    ] = "0%",
    target_user_tps: Annotated[
        float | None,
        typer.Option(help="Tokens/s of one user, at least.", rich_help_panel=_SERVING),
    ] = None,
    max_ttft: Annotated[
        float | None, typer.Option(help="Prefill of a batch, ms.", rich_help_panel=_SERVING)
    ] = None,
    max_tpot: Annotated[
        float | None, typer.Option(help="Decode step, ms.", rich_help_panel=_SERVING)
    ] = None,
    max_latency: Annotated[
        float | None, typer.Option(help="Whole batch, ms.", rich_help_panel=_SERVING)
    ] = None,
    memory: Annotated[
        str | None,
        typer.Option(help="Of each device, e.g. 60GB or 80000MiB.", rich_help_panel=_SERVING),
    ] = None,
    problem: Annotated[
        Path | None,
        typer.Option(
            help="Folder that 'import' wrote: search its tables, instead of model, GPU and "
            "scenario, within --memory and --runtime."
        ),
    ] = None,
    runtime: Annotated[
        str | None,
        typer.Option(help="Of a --problem's batch, e.g. 51200ms.", rich_help_panel=_SERVING),
    ] = None,
    max_params: Annotated[
        float | None, typer.Option(help="Billions of parameters.", rich_help_panel=_CHILD)
    ] = None,
    max_kv_bytes: Annotated[
        float | None, typer.Option(help="KV cache of one token.", rich_help_panel=_CHILD)
    ] = None,
    max_score: Annotated[
        float | None, typer.Option(help="Summed damage.", rich_help_panel=_CHILD)
    ] = None,
    limit: Annotated[
        list[str] | None,
        typer.Option(
            help="""Linear: 'sum(attention == "no_op") <= 20'; again for more.""",
            rich_help_panel=_CHILD,
        ),
    ] = None,
    freeze: Annotated[
        str | None,
        typer.Option(help="Layers that stay the parent's: 0,1,76-79.", rich_help_panel=_CHILD),
    ] = None,
    portable: Annotated[
        str | None,
        typer.Option(
            help="Engine that must load the child: trtllm, vllm, sglang, llama.cpp, mlx-lm.",
            rich_help_panel=_CHILD,
        ),
    ] = None,
    goal: Annotated[
        str,
        typer.Option(
            help="Best of what: score, throughput, memory, latency, ttft, tpot, parameters, kv.",
            rich_help_panel=_SEARCH,
        ),
    ] = "score",
    scores: Annotated[
        Path | None,
        typer.Option(help="Score table instead of the model's own.", rich_help_panel=_SEARCH),
    ] = None,
    metric: Annotated[
        str,
        typer.Option(
            help="Metric of the score table, or a mix: kl + 0.1*lm_loss.", rich_help_panel=_SEARCH
        ),
    ] = "kl",
    solutions: Annotated[
        int, typer.Option(help="How many answers.", min=1, rich_help_panel=_SEARCH)
    ] = 1,
    min_distance: Annotated[
        int,
        typer.Option(help="Layers in which answers differ.", min=1, rich_help_panel=_SEARCH),
    ] = 1,
    max_seconds: Annotated[
        float, typer.Option(help="Time limit of the search.", rich_help_panel=_SEARCH)
    ] = 60.0,
    backend: Annotated[
        str, typer.Option(help="Exact step: scip, highs or cp-sat.", rich_help_panel=_SEARCH)
    ] = "scip",
    rounds: Annotated[
        int,
        typer.Option(
            help="At most so many; needs --parent, --library and --data.",
            min=0,
            rich_help_panel=_ROUNDS,
        ),
    ] = 0,
    parent: Annotated[
        Path | None, typer.Option(help="Its checkpoint folder.", rich_help_panel=_ROUNDS)
    ] = None,
    library: Annotated[
        Path | None, typer.Option(help="Complete block library.", rich_help_panel=_ROUNDS)
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(help="python-stdlib, or a folder or file of text.", rich_help_panel=_ROUNDS),
    ] = None,
    tokens: Annotated[
        int, typer.Option(help="Held-out tokens to judge on.", min=1, rich_help_panel=_ROUNDS)
    ] = 16384,
    length: Annotated[
        int, typer.Option(help="Tokens in a block of text.", min=2, rich_help_panel=_ROUNDS)
    ] = 128,
    trust_layers: Annotated[
        int, typer.Option(help="Layers that a round may change.", min=1, rich_help_panel=_ROUNDS)
    ] = 4,
    pairs: Annotated[
        bool,
        typer.Option(
            "--pairs",
            help="Cheaper: measure pairs of the child's own blocks, infer the other "
            "replacements from them.",
            rich_help_panel=_ROUNDS,
        ),
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(help="Write the architecture spec here.", callback=text_to_write),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Find the architecture that keeps the most quality within the limits, proven optimal."""
    from puzzle_search.cli.solve_tables import solve_tables
    from puzzle_search.errors import InputError
    from puzzle_search.files import is_stream
    from puzzle_search.solve import ChildLimits, Limits
    from puzzle_search.solve.problem.builder import parse_goal
    from puzzle_search.solve.question.ask import Question, ask_for_several
    from puzzle_search.solve.question.fleet import ask_fleet, cheapest, parse_offers
    from puzzle_search.solve.question.parse import (
        parse_bytes,
        parse_fraction,
        parse_layers,
        parse_microseconds,
        parse_scenario,
    )
    from puzzle_search.solve.question.tables import TableLimits, table_problem
    from puzzle_search.solve.search.exact.core import parse_backend

    if out is not None and out.is_dir():
        raise InputError(f"--out {out} is a folder", remedy="name a file")
    solver = parse_backend(backend)
    parameters = None if max_params is None else max_params * 1e9
    memory_bytes = None if memory is None else parse_bytes(memory)
    frozen = frozenset() if freeze is None else parse_layers(freeze)
    if problem is not None:
        _only_of_tables(context)
        table_limits = TableLimits(
            memory_bytes=memory_bytes,
            runtime_us=None if runtime is None else parse_microseconds(runtime),
            parameters=parameters,
            score=max_score,
            linear=tuple(limit or ()),
            frozen=frozen,
        )
        asked = table_problem(problem, table_limits, metric=metric, goal=goal)
        solve_tables(asked, max_seconds=max_seconds, backend=solver, out=out, as_json=as_json)
        return
    if runtime is not None:
        raise InputError("--runtime is for --problem", remedy="use --max-latency")
    limits = Limits(
        tokens_per_second_per_gpu=target_tps,
        tokens_per_second_per_user=target_user_tps,
        ttft_ms=max_ttft,
        tpot_ms=max_tpot,
        latency_ms=max_latency,
        memory_bytes=memory_bytes,
    )
    question = Question(
        model=model,
        gpu=gpu,
        scenarios=[parse_scenario(text, limits) for text in scenario or ["128/1024"]],
        child=ChildLimits(
            score=max_score,
            parameters=parameters,
            kv_bytes_per_token=max_kv_bytes,
            linear=tuple(limit or ()),
            frozen=frozen,
            portable_to=portable,
        ),
        engine=engine,
        dtype=dtype,
        tp=tp,
        scores=str(scores) if scores else None,
        metric=metric,
        goal=parse_goal(goal),
        margin=parse_fraction(margin),
    )
    offers = parse_offers(gpu)
    if rounds:
        from puzzle_search.cli.solve_rounds import RoundOptions, solve_rounds

        if len(offers) > 1 or solutions > 1:
            raise InputError("rounds improve one answer", remedy="name one GPU, ask for one answer")
        solve_rounds(
            question,
            RoundOptions(
                rounds=rounds, parent=parent, library=library, data=data, tokens=tokens,
                length=length, trust_layers=trust_layers, pairs=pairs, max_seconds=max_seconds,
            ),
            out=out,
            as_json=as_json,
        )  # fmt: skip
        return
    if len(offers) > 1 or offers[0].usd_per_hour is not None:
        if solutions > 1:
            raise InputError("several GPUs give one answer each", remedy="name one GPU, unpriced")
        quotes = ask_fleet(question, offers, max_seconds=max_seconds, backend=solver)
        chosen = cheapest(quotes)
        assert chosen.answer is not None
        answers = [chosen.answer]
        shown = {"cheapest": chosen.offer.gpu, "gpus": [quote.as_dict() for quote in quotes]}
    else:
        quotes = []
        answers = ask_for_several(
            question, solutions, min_distance, max_seconds=max_seconds, backend=solver
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


def _only_of_tables(context: typer.Context) -> None:
    from puzzle_search.errors import InputError

    given = {
        name
        for name in context.params
        if getattr(context.get_parameter_source(name), "name", "") == "COMMANDLINE"
    }
    if other := sorted(given - _OF_TABLES):
        names = ", ".join("--" + name.replace("_", "-") for name in other)
        raise InputError(
            f"{names} cannot be told from the tables of --problem",
            remedy="limit --memory, --runtime, --max-params, --max-score, or --limit",
        )
