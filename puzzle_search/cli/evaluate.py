"""``puzzle-search evaluate``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from puzzle_search.cli.options import (
    DataOption,
    DeviceOption,
    JsonOption,
    LengthOption,
    TorchDtypeOption,
    text_to_write,
)


def evaluate(
    parent: Annotated[Path, typer.Argument(help="Checkpoint folder of the parent.")],
    children: Annotated[list[Path], typer.Argument(help="Checkpoint folders of its children.")],
    data: DataOption,
    tokens: Annotated[int, typer.Option(min=1, help="Tokens of the test split.")] = 32768,
    length: LengthOption = 128,
    tasks: Annotated[
        str | None,
        typer.Option(help="Tasks of lm-eval, with commas; needs the extra 'eval'."),
    ] = None,
    task_dir: Annotated[
        Path | None, typer.Option(help="Folder with task files (YAML) of your own.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Documents of each task. (default: all)")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Requests of a task at once. (default: 8)")
    ] = None,
    device: DeviceOption = "cpu",
    dtype: TorchDtypeOption = "fp32",
    markdown: Annotated[
        Path | None,
        typer.Option(help="File for the table, in Markdown.", callback=text_to_write),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Measure children against their parent: KL, loss, accuracy, tasks, and what is preserved."""
    from puzzle_search.checkpoint import load_tokenizer
    from puzzle_search.data import load_documents, sample_tokens
    from puzzle_search.errors import InputError
    from puzzle_search.evaluate import Tasks, TaskSettings, evaluate_children
    from puzzle_search.files import is_stream, write_text
    from puzzle_search.model.dtypes import torch_dtype
    from puzzle_search.profile import open_device

    if tasks is None and (task_dir, limit, batch_size) != (None, None, None):
        raise InputError(
            "--task-dir, --limit and --batch-size are of tasks", remedy="name some with --tasks"
        )
    ids = sample_tokens(
        load_documents(data, "test"), load_tokenizer(parent), length=length, tokens=tokens
    ).ids
    asked = tasks and TaskSettings(
        names=tuple(tasks.split(",")), folder=task_dir, limit=limit, batch_size=batch_size or 8
    )
    evaluation = evaluate_children(
        parent,
        children,
        ids,
        tasks=Tasks(asked) if asked else None,
        dtype=torch_dtype(dtype),
        device=open_device(device).torch_device,
    )
    if markdown is not None:
        write_text(markdown, evaluation.markdown())
        if is_stream(markdown):
            return
    if as_json:
        print(json.dumps(evaluation.as_dict()))
    else:
        print(evaluation.markdown(), end="")
