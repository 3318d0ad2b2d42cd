"""``puzzle-search distill``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from puzzle_search.choices import TorchDtype, Tracker
from puzzle_search.cli.compute import computed_in, let_threads_sleep
from puzzle_search.cli.next_step import quoted, tell_next
from puzzle_search.cli.options import (
    ComputeDtypeOption,
    DeviceOption,
    LengthOption,
    ParentOption,
    TrainingDataOption,
)


def distill(
    parent: ParentOption,
    child: Annotated[Path, typer.Option(help="Checkpoint folder of the child to begin from.")],
    data: TrainingDataOption,
    out: Annotated[
        Path,
        typer.Option(help="Folder of the distilled child; OUT.run holds metrics and checkpoints."),
    ],
    tokens: Annotated[int, typer.Option(min=1, help="Training tokens.")],
    losses: Annotated[
        str, typer.Option(help="What is added up: any of lm, cosine, kl.")
    ] = "cosine,kl",
    learning_rate: Annotated[float, typer.Option(help="Peak learning rate.")] = 3e-4,
    batch_tokens: Annotated[int, typer.Option(min=1, help="Tokens in a step.")] = 4096,
    micro_batch_tokens: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Tokens that pass at once on each device, gradients being accumulated. "
            "(default: the whole step)",
        ),
    ] = None,
    length: LengthOption = 128,
    held_out_tokens: Annotated[
        int, typer.Option(min=1, help="Tokens for the held-out losses.")
    ] = 8192,
    held_out_every: Annotated[int, typer.Option(min=1, help="Steps between held-out losses.")] = 50,
    checkpoint_every: Annotated[int, typer.Option(min=1, help="Steps between checkpoints.")] = 50,
    activation_checkpointing: Annotated[
        bool,
        typer.Option(
            "--activation-checkpointing", help="Less memory: compute blocks again going back."
        ),
    ] = False,
    dtype: ComputeDtypeOption = "auto",
    out_dtype: Annotated[TorchDtype, typer.Option(help="Of the written weights.")] = "bf16",
    device: DeviceOption = "cpu",
    track: Annotated[
        Tracker | None, typer.Option(help="Who shows the metrics, beside metrics.jsonl.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Order of the documents.")] = 0,
) -> None:
    """Train the whole child against its parent (GKD); a killed run goes on."""
    let_threads_sleep()
    from puzzle_search.checkpoint import load_tokenizer
    from puzzle_search.data import TokenStream, load_documents, sample_tokens
    from puzzle_search.data.documents import PYTHON_STDLIB
    from puzzle_search.data.self_text import find_source
    from puzzle_search.distill import DistillSettings, kept_state
    from puzzle_search.distill import distill as distill_child

    settings = DistillSettings(
        tokens=tokens,
        losses=tuple(losses.split(",")),
        batch_tokens=batch_tokens,
        micro_batch_tokens=micro_batch_tokens,
        learning_rate=learning_rate,
        dtype=computed_in(dtype, device),
        activation_checkpointing=activation_checkpointing,
        held_out_every=held_out_every,
        checkpoint_every=checkpoint_every,
    )
    source = find_source(data, parent, device=device)
    tokenizer = load_tokenizer(parent)
    stream = TokenStream(load_documents(source, "train"), tokenizer, length=length, seed=seed)
    held_out = sample_tokens(
        load_documents(source, "validation"), tokenizer, length=length, tokens=held_out_tokens
    )
    folder = distill_child(
        parent,
        child,
        out,
        stream,
        held_out,
        settings,
        out_dtype=out_dtype,
        device=device,
        track=track,
    )
    if os.environ.get("RANK", "0") == "0":  # of the processes of torchrun, the one that writes
        print(f"distilled child written to {folder}")
        if note := kept_state(folder):
            print(f"note: {note}")
        judged = data if source == data else PYTHON_STDLIB  # children are judged on real text
        tell_next(
            f"puzzle-search evaluate {quoted(parent)} {quoted(folder)} --data {quoted(judged)}"
        )
