"""``puzzle-search library``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from puzzle_search.cli.options import DataOption, LengthOption, ParentOption, SpaceOption


def library(
    parent: ParentOption,
    space: SpaceOption,
    data: DataOption,
    out: Annotated[Path, typer.Option(help="Library folder; an unfinished one is continued.")],
    tokens: Annotated[int, typer.Option(min=0, help="Training tokens per variant.")] = 65536,
    held_out_tokens: Annotated[int, typer.Option(min=1, help="Tokens for the losses.")] = 8192,
    length: LengthOption = 128,
    learning_rate: Annotated[float, typer.Option(help="Peak learning rate.")] = 2e-3,
) -> None:
    """Initialise every variant and distil it block by block (BLD)."""
    from puzzle_search.arch import ParentConfig, SearchSpace
    from puzzle_search.checkpoint import load_tokenizer
    from puzzle_search.data import load_documents, pack_tokens
    from puzzle_search.library import BldSettings, build_library

    config, tokenizer = ParentConfig.from_file(parent), load_tokenizer(parent)
    settings = BldSettings(tokens=tokens, learning_rate=learning_rate)
    train = pack_tokens(
        load_documents(data, "train"), tokenizer, length=length, max_tokens=max(tokens, 16384)
    ).ids
    held_out = pack_tokens(
        load_documents(data, "validation"), tokenizer, length=length, max_tokens=held_out_tokens
    ).ids
    built = build_library(
        parent, SearchSpace.from_file(space, config), train, held_out, out, settings
    )
    print(f"{len(built.entries)} variants trained, written to {out}")
