"""``puzzle-search library``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from puzzle_search.cli.compute import computed_in, let_threads_sleep
from puzzle_search.cli.options import (
    AddressOption,
    ComputeDtypeOption,
    DeviceOption,
    ExecutorOption,
    GpusPerJobOption,
    LengthOption,
    MaxMemoryOption,
    ParentOption,
    SpaceOption,
    TrainingDataOption,
    WorkersOption,
    folder_to_write,
)


def library(
    parent: ParentOption,
    space: SpaceOption,
    data: TrainingDataOption,
    out: Annotated[
        Path,
        typer.Option(
            help="Library folder; an unfinished one is continued.",
            callback=folder_to_write("a block library", "journal.jsonl", "library.json", "layer*"),
        ),
    ],
    tokens: Annotated[int, typer.Option(min=0, help="Training tokens per variant.")] = 65536,
    held_out_tokens: Annotated[int, typer.Option(min=1, help="Tokens for the losses.")] = 8192,
    calibration_tokens: Annotated[
        int, typer.Option(min=1, help="Tokens that initialisers look at.")
    ] = 16384,
    length: LengthOption = 128,
    batch_tokens: Annotated[int, typer.Option(min=1, help="Tokens of one step.")] = 1024,
    learning_rate: Annotated[float, typer.Option(help="Peak learning rate.")] = 2e-3,
    coupled: Annotated[
        bool, typer.Option("--coupled", help="Train every pair of variants together too.")
    ] = False,
    start_from: Annotated[
        Path | None,
        typer.Option(
            "--from", help="Library of the same parent: take its singles, begin pairs with them."
        ),
    ] = None,
    initialiser: Annotated[
        list[str] | None,
        typer.Option(help="Try this initialiser for its kind of variant, repeatable; else all."),
    ] = None,
    max_memory: MaxMemoryOption = None,
    executor: ExecutorOption = "local",
    workers: WorkersOption = None,
    address: AddressOption = None,
    gpus_per_job: GpusPerJobOption = None,
    device: DeviceOption = "cpu",
    dtype: ComputeDtypeOption = "auto",
) -> None:
    """Initialise every variant and distil it block by block (BLD)."""
    let_threads_sleep()
    from puzzle_search.arch import ParentConfig, SearchSpace
    from puzzle_search.checkpoint import load_tokenizer
    from puzzle_search.data import load_documents, sample_tokens
    from puzzle_search.data.self_text import find_source
    from puzzle_search.executor import open_executor
    from puzzle_search.library import BldSettings, build_library
    from puzzle_search.profile import open_device
    from puzzle_search.solve.question.parse import parse_bytes

    max_memory_bytes = None if max_memory is None else parse_bytes(max_memory)
    opened = open_device(device)
    config, tokenizer = ParentConfig.from_file(parent), load_tokenizer(parent)
    data = find_source(data, parent, device=opened.torch_device)
    settings = BldSettings(tokens=tokens, batch_tokens=batch_tokens, learning_rate=learning_rate)
    train = sample_tokens(
        load_documents(data, "train"),
        tokenizer,
        length=length,
        tokens=max(tokens, calibration_tokens),
    ).ids
    held_out = sample_tokens(
        load_documents(data, "validation"), tokenizer, length=length, tokens=held_out_tokens
    ).ids
    built = build_library(
        parent,
        SearchSpace.from_file(space, config),
        train,
        held_out,
        out,
        settings,
        calibration_tokens=calibration_tokens,
        coupled=coupled,
        start_from=start_from,
        initialisers=initialiser or (),
        max_memory_bytes=max_memory_bytes,
        dtype=computed_in(dtype, device),
        device=opened.torch_device,
        executor=open_executor(
            executor, workers=workers, address=address, gpus_per_job=gpus_per_job
        ),
    )
    print(f"{len(built.entries)} variants trained, written to {out}")
