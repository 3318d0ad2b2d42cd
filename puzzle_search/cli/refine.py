"""``puzzle-search refine``."""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from puzzle_search.cli.options import (
    AskedGpuOption,
    BackendOption,
    DataOption,
    JsonOption,
    LengthOption,
    MaxSecondsOption,
    OutSpecOption,
    ParentOption,
)
from puzzle_search.cli.question import QuestionOptions
from puzzle_search.cli.shared import takes


@takes(QuestionOptions)
def refine(
    asked: QuestionOptions,
    *,
    parent: ParentOption,
    library: Annotated[Path, typer.Option(help="Complete block library.")],
    data: DataOption,
    gpu: AskedGpuOption = "h100",
    rounds: Annotated[int, typer.Option(help="At most so many.", min=1)] = 3,
    tokens: Annotated[int, typer.Option(help="Held-out tokens to judge on.", min=1)] = 16384,
    length: LengthOption = 128,
    trust_layers: Annotated[int, typer.Option(help="Layers that a round may change.", min=1)] = 4,
    pairs: Annotated[
        bool,
        typer.Option(
            "--pairs",
            help="Cheaper: measure pairs of the child's own blocks, infer the other "
            "replacements from them.",
        ),
    ] = False,
    max_seconds: MaxSecondsOption = 60.0,
    backend: BackendOption = "scip",
    out: OutSpecOption = None,
    as_json: JsonOption = False,
) -> None:
    """Solve, then improve the answer in rounds: measure it, score around it, solve again."""
    from rich.console import Console

    from puzzle_search.arch import ParentConfig
    from puzzle_search.checkpoint import CheckpointReader, load_tokenizer
    from puzzle_search.checkpoint.block_library import BlockLibrary
    from puzzle_search.cli.print_answer import print_answer, round_table
    from puzzle_search.data import load_documents, sample_tokens
    from puzzle_search.errors import InputError
    from puzzle_search.files import is_stream
    from puzzle_search.pipeline.rounds import ScoringJudge
    from puzzle_search.solve.question.ask import pose
    from puzzle_search.solve.rounds.pairs import PairJudge
    from puzzle_search.solve.rounds.rounds import best_round
    from puzzle_search.solve.rounds.rounds import refine as refine_by_rounds

    question = asked.question(gpu=gpu)
    posed = pose(question)
    config = posed.inputs.config
    if replace(ParentConfig.from_file(parent), name=config.name) != config:
        raise InputError(
            f"{parent} is not the model that is searched, {config.name}",
            remedy="name the checkpoint of --model with --parent",
        )
    blocks = BlockLibrary.from_folder(library, config, CheckpointReader(parent))
    ids = sample_tokens(
        load_documents(data, "validation"), load_tokenizer(parent), length=length, tokens=tokens
    ).ids
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) if out is None or is_stream(out) else out.with_suffix(".rounds")
        measured = ScoringJudge(parent, blocks, ids, folder, metric=question.metric)
        judge = PairJudge(measured, posed.problem, config) if pairs else measured
        done = list(
            refine_by_rounds(
                posed.problem,
                judge,
                rounds=rounds,
                trust_layers=trust_layers,
                max_seconds=max_seconds,
                backend=backend,
            )
        )
    answer = posed.judged(
        posed.answer(best_round(done).solution), max_seconds=max_seconds, backend=backend
    )
    figures = [entry.as_dict() for entry in done]
    answer = replace(answer, origins={**answer.origins, "rounds": figures})
    if out is not None:
        answer.spec.write(out)
        if is_stream(out):
            return
    if as_json:
        print(json.dumps(answer.as_dict() | {"rounds": figures}))
        return
    print_answer(answer)
    Console().print(round_table(done))
    if out is not None:
        print(f"written to {out}")
