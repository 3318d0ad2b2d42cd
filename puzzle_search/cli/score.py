"""``puzzle-search score``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from puzzle_search.cli.options import DataOption, LengthOption, ParentOption, SpaceOption


def score(
    parent: ParentOption,
    library: Annotated[Path, typer.Option(help="Complete block library.")],
    space: SpaceOption,
    data: DataOption,
    out: Annotated[Path, typer.Option(help="Score table (CSV) to write.")],
    tokens: Annotated[int, typer.Option(min=1, help="Held-out tokens.")] = 16384,
    length: LengthOption = 128,
    composed: Annotated[
        bool, typer.Option(help="Score every pair, not only single subblocks.")
    ] = True,
) -> None:
    """Replace one block at a time and measure the damage: KL to the parent per token."""
    from puzzle_search.arch import SearchSpace
    from puzzle_search.checkpoint import CheckpointReader, load_decoder, load_tokenizer
    from puzzle_search.checkpoint.block_library import BlockLibrary
    from puzzle_search.data import load_documents, sample_tokens
    from puzzle_search.files import Journal
    from puzzle_search.score import score_replacements

    model = load_decoder(parent)
    ids = sample_tokens(
        load_documents(data, "validation"),
        load_tokenizer(parent),
        length=length,
        tokens=tokens,
    ).ids
    table = score_replacements(
        model,
        BlockLibrary.from_folder(library, model.config, CheckpointReader(parent)),
        SearchSpace.from_file(space, model.config),
        ids,
        journal=Journal(out.with_suffix(".journal.jsonl")),
        data=f"{data}, validation split",
        composed=composed,
    )
    table.write(out)
    print(f"{len(table.rows)} replacements scored, written to {out}")
