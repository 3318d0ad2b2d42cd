"""``puzzle-search export``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from puzzle_search.cli.options import JsonOption

if TYPE_CHECKING:
    from puzzle_search.export import ExportPlan


def export(
    model: Annotated[Path, typer.Argument(help="Checkpoint folder: a child, or a parent.")],
    to: Annotated[str, typer.Option(help="Engine: llama.cpp, vllm, mlx-lm or transformers.")],
    out: Annotated[
        Path | None,
        typer.Option(help="File (llama.cpp) or new folder to write; not needed with --dry-run."),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            help="Of matrices: f32, f16, bf16; for llama.cpp also q8_0, q5_1, q5_0, q4_1, q4_0, "
            "q4_k. (default: f16 for llama.cpp, else bf16)",
            show_default=False,
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan alone.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Write a model in the file that a serving engine reads."""
    from puzzle_search.errors import InputError
    from puzzle_search.export import plan_export, write_export

    if out is None and not dry_run:
        raise InputError("no --out is given", remedy="name a file, or ask for --dry-run")
    plan = plan_export(model, to, dtype=dtype)
    if not dry_run:
        assert out is not None
        write_export(plan, model, out)
    if as_json:
        print(json.dumps(plan.as_dict() | {"written": None if dry_run else str(out)}))
        return
    _print(plan, tensors=dry_run)
    print("nothing written" if dry_run else f"written to {out}")


def _print(plan: ExportPlan, *, tensors: bool) -> None:
    if tensors:
        width = max(len(tensor.name) for tensor in plan.tensors)
        for tensor in plan.tensors:
            shape = " x ".join(map(str, tensor.shape))
            print(
                f"{tensor.name:{width}}  {tensor.dtype:5} {shape:>15} {tensor.bytes:>14,}  "
                f"{tensor.source}"
            )
    print(
        f"{plan.engine}, architecture {plan.architecture!r}: {plan.blocks} blocks, "
        f"{plan.parameters:,} parameters, {plan.bytes / 1e6:,.1f} MB"
    )
    for form in plan.forms:
        print(f"substitute: {form.where}: {form.form} ({form.extra_bytes / 1e6:,.2f} MB)")
    for note in plan.notes:
        print(f"note: {note}")
