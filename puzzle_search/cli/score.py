"""``puzzle-search score``."""

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
    file_to_write,
)


def score(
    parent: ParentOption,
    library: Annotated[Path, typer.Option(help="Complete block library.")],
    space: SpaceOption,
    data: TrainingDataOption,
    out: Annotated[Path, typer.Option(help="Score table (CSV) to write.", callback=file_to_write)],
    tokens: Annotated[int, typer.Option(min=1, help="Held-out tokens.")] = 16384,
    length: LengthOption = 128,
    composed: Annotated[
        bool, typer.Option(help="Score every pair, not only single subblocks.")
    ] = True,
    metrics: Annotated[
        str,
        typer.Option(
            help="all, or some of kl, lm_loss, top1_disagreement, top5_disagreement, "
            "top10_disagreement, hidden_cosine_distance."
        ),
    ] = "kl,lm_loss,top1_disagreement,hidden_cosine_distance",
    max_memory: MaxMemoryOption = None,
    kl_top_k: Annotated[
        int | None,
        typer.Option(
            "--kl-top-k",
            min=1,
            help="KL over the parent's so many likeliest tokens and one bucket for the rest. "
            "(default: the whole vocabulary)",
            show_default=False,
        ),
    ] = None,
    around: Annotated[
        Path | None,
        typer.Option(help="Replace blocks of this child (architecture.yaml), not the parent's."),
    ] = None,
    executor: ExecutorOption = "local",
    workers: WorkersOption = None,
    address: AddressOption = None,
    gpus_per_job: GpusPerJobOption = None,
    jobs: Annotated[
        int | None,
        typer.Option(
            min=1, help="Passes to divide the work into. (default: one a worker, 8 on Ray)"
        ),
    ] = None,
    device: DeviceOption = "cpu",
    dtype: ComputeDtypeOption = "auto",
) -> None:
    """Replace one block at a time and measure the damage to the parent's predictions."""
    let_threads_sleep()
    from puzzle_search.arch import ArchitectureSpec, ParentConfig, SearchSpace
    from puzzle_search.checkpoint import CheckpointReader, load_tokenizer
    from puzzle_search.checkpoint.block_library import BlockLibrary
    from puzzle_search.data import load_documents, sample_tokens
    from puzzle_search.data.self_text import find_source
    from puzzle_search.executor import open_executor
    from puzzle_search.files import Journal
    from puzzle_search.model.dtypes import torch_dtype
    from puzzle_search.profile import open_device
    from puzzle_search.score import parse_metrics, replacements_around, score_replacements
    from puzzle_search.solve.problem.score_table import check_table_path
    from puzzle_search.solve.question.parse import parse_bytes

    check_table_path(out)
    data = find_source(data, parent, device=open_device(device).torch_device)
    config = ParentConfig.from_file(parent)
    search_space = SearchSpace.from_file(space, config)
    base = None if around is None else ArchitectureSpec.from_file(around)
    ids = sample_tokens(
        load_documents(data, "validation"),
        load_tokenizer(parent),
        length=length,
        tokens=tokens,
    ).ids
    scores = score_replacements(
        parent,
        BlockLibrary.from_folder(library, config, CheckpointReader(parent)),
        list(
            search_space.replacements(config, composed=composed)
            if base is None
            else replacements_around(config, search_space, base, composed=composed)
        ),
        ids,
        journal=Journal(out.with_suffix(".journal.jsonl")),
        base=base,
        metrics=parse_metrics(metrics),
        max_memory_bytes=None if max_memory is None else parse_bytes(max_memory),
        kl_top_k=kl_top_k,
        executor=open_executor(
            executor, workers=workers, address=address, gpus_per_job=gpus_per_job
        ),
        jobs=jobs or workers or (8 if executor == "ray" else 1),
        device=device,
        dtype=torch_dtype(computed_in(dtype, device)),
    )
    table = scores.table(config.name, data=f"{data}, validation split")
    table.write(out)
    replacements = len(
        {(row.first_layer, row.last_layer, row.attention, row.ffn) for row in table.rows}
    )
    print(f"{replacements} replacements scored, written to {out}")
    for row in scores.base:
        error = "" if row.stderr is None else f" +- {row.stderr:.2g}"
        print(f"the child itself: {row.metric} {row.value:.5g}{error}")
    if any(row.stderr is None for row in table.rows):
        print("standard errors are not known: one block of tokens tells none (--tokens, --length)")
