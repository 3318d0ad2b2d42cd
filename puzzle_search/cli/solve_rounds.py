"""``puzzle-search solve --rounds``."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from puzzle_search.errors import InputError
from puzzle_search.files import is_stream

if TYPE_CHECKING:
    from puzzle_search.solve.question.ask import Question


@dataclass(frozen=True, kw_only=True)
class RoundOptions:
    """Options of the panel "Rounds", as they were given."""

    rounds: int
    parent: Path | None
    library: Path | None
    data: str | None
    tokens: int
    length: int
    trust_layers: int
    pairs: bool
    max_seconds: float


def solve_rounds(
    question: Question, options: RoundOptions, *, out: Path | None, as_json: bool
) -> None:
    """Improve one answer by rounds, and print it with what every round did."""
    from rich.console import Console

    from puzzle_search.arch import ParentConfig
    from puzzle_search.checkpoint import CheckpointReader, load_tokenizer
    from puzzle_search.checkpoint.block_library import BlockLibrary
    from puzzle_search.cli.print_answer import print_answer, round_table
    from puzzle_search.data import load_documents, sample_tokens
    from puzzle_search.pipeline.rounds import ScoringJudge
    from puzzle_search.solve.question.ask import pose
    from puzzle_search.solve.rounds.pairs import PairJudge
    from puzzle_search.solve.rounds.rounds import best_round, refine

    parent, library, data = options.parent, options.library, options.data
    if parent is None or library is None or data is None:
        raise InputError(
            "rounds measure children, which takes more than scores",
            remedy="give --parent, --library and --data",
        )
    asked = pose(question)
    config = asked.inputs.config
    if replace(ParentConfig.from_file(parent), name=config.name) != config:
        raise InputError(
            f"{parent} is not the model that is searched, {config.name}",
            remedy="name the checkpoint of --model with --parent",
        )
    blocks = BlockLibrary.from_folder(library, config, CheckpointReader(parent))
    ids = sample_tokens(
        load_documents(data, "validation"), load_tokenizer(parent), length=options.length,
        tokens=options.tokens,
    ).ids  # fmt: skip
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) if out is None or is_stream(out) else out.with_suffix(".rounds")
        measured = ScoringJudge(parent, blocks, ids, folder, metric=question.metric)
        judge = PairJudge(measured, asked.problem, config) if options.pairs else measured
        done = list(
            refine(
                asked.problem,
                judge,
                rounds=options.rounds,
                trust_layers=options.trust_layers,
                max_seconds=options.max_seconds,
            )
        )
    answer = asked.answer(best_round(done).solution)
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
