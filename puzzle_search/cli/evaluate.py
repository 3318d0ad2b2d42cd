"""``puzzle-search evaluate``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from puzzle_search.cli.options import DataOption, JsonOption, LengthOption


def evaluate(
    parent: Annotated[Path, typer.Argument(help="Checkpoint folder of the parent.")],
    child: Annotated[Path, typer.Argument(help="Checkpoint folder of the child.")],
    data: DataOption,
    tokens: Annotated[int, typer.Option(min=1, help="Tokens of the test split.")] = 32768,
    length: LengthOption = 128,
    as_json: JsonOption = False,
) -> None:
    """Measure a child against its parent on held-out text: KL, loss, accuracy."""
    from puzzle_search.checkpoint import load_decoder, load_tokenizer
    from puzzle_search.data import load_documents, sample_tokens
    from puzzle_search.evaluate import measure_quality

    ids = sample_tokens(
        load_documents(data, "test"), load_tokenizer(parent), length=length, tokens=tokens
    ).ids
    quality = measure_quality(load_decoder(parent), load_decoder(child), ids).as_dict()
    if as_json:
        print(json.dumps(quality))
        return
    for name, value in quality.items():
        print(f"{name:20} {'unknown' if value is None else format(value, '.5g')}")
