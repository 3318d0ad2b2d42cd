"""``puzzle-search import``: what other tools made."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from puzzle_search.cli.checked import CheckedCommand
from puzzle_search.cli.options import folder_to_write

StoredDtype = Literal["bf16", "fp16", "fp32"]

if TYPE_CHECKING:
    from puzzle_search.imports import ImportedTables

import_app = typer.Typer(
    help="Take over what other tools made: scores and costs, or a model.", no_args_is_help=True
)
OutOption = Annotated[
    Path,
    typer.Option(
        "--out",
        help="Folder to write; for solve-tables.",
        callback=folder_to_write("an import", "block_costs.csv"),
    ),
]


@import_app.command(cls=CheckedCommand)
def nvlabs(
    folder: Annotated[Path, typer.Argument(help="Holds block_library.json of NVlabs/puzzle.")],
    out: OutOption,
) -> None:
    """Read the block library of NVlabs/puzzle."""
    from puzzle_search.imports import import_nvlabs

    tables = import_nvlabs(folder)
    tables.write(out)
    _print(tables, out)


@import_app.command(cls=CheckedCommand)
def puzzletron(
    folder: Annotated[Path, typer.Argument(help="puzzle_dir of Model-Optimizer's Puzzletron.")],
    out: OutOption,
    batch: Annotated[int | None, typer.Option(min=1, help="Take this batch size.")] = None,
    prefill: Annotated[int | None, typer.Option(min=1, help="Take this input length.")] = None,
    generation: Annotated[int | None, typer.Option(min=1, help="Take this output length.")] = None,
    where: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="Take what has this in args; repeatable."),
    ] = None,
) -> None:
    """Read replacements, subblock costs and scores of a Puzzletron run."""
    from puzzle_search.imports import Measurement, import_puzzletron

    measurement = Measurement(
        batch=batch, prefill_len=prefill, generation_len=generation, others=_pairs(where or [])
    )
    tables = import_puzzletron(folder, measurement)
    tables.write(out)
    _print(tables, out)


@import_app.command(cls=CheckedCommand)
def gguf(
    file: Annotated[Path, typer.Argument(help="A .gguf file of a Llama-like model.")],
    out: Annotated[Path, typer.Option("--out", help="Hugging Face folder to write.")],
    dtype: Annotated[StoredDtype, typer.Option(help="What weights are stored in.")] = "bf16",
) -> None:
    """Turn a GGUF file into a parent: a Hugging Face folder with weights and tokenizer."""
    from puzzle_search.imports import import_gguf

    model = import_gguf(file, out, dtype=dtype)
    types = ", ".join(f"{count} x {name}" for name, count in model.types.items())
    print(f"{model.config.model_type}, {model.config.num_layers} layers; tensors: {types}")
    if model.not_taken:
        print(f"not taken, no place for it in the folder: {', '.join(model.not_taken)}")
    print(f"{model.weight_bytes / 1e6:,.1f} MB of weights as {dtype}, written to {out}")


def _pairs(texts: list[str]) -> dict[str, str]:
    from puzzle_search.errors import InputError

    for text in texts:
        if "=" not in text:
            raise InputError(
                f"where {text!r} is not NAME=VALUE", remedy="write weights_dtype=torch.bfloat16"
            )
    return dict((text.split("=", 1)[0], text.split("=", 1)[1]) for text in texts)


def _print(tables: ImportedTables, out: Path) -> None:
    costs = tables.costs
    print(
        f"{len(costs.rows)} blocks of {costs.num_layers} layers, batch {costs.batch}, "
        f"{costs.sequence_length} tokens, {costs.dtype}, on {costs.gpu or 'an unnamed device'}"
    )
    print(f"metrics: {', '.join(tables.metrics)}")
    print(f"runtime: {'in every row' if costs.has_runtime else 'the source has none'}")
    print(f"written to {out}")
