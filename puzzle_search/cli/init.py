"""``puzzle-search init``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from puzzle_search.cli.next_step import quoted, tell_next


def init(
    model: Annotated[str, typer.Argument(help="Checkpoint folder, or a shipped example.")],
    gpu: Annotated[
        str | None,
        typer.Option(help="GPU that the run is for, by its cost model. (default: this machine)"),
    ] = None,
    out: Annotated[Path, typer.Option(help="Recipe to write.")] = Path("recipe.yaml"),
    hours: Annotated[
        float,
        typer.Option(min=0.01, max=1e5, help="What the run may take at the device's highest rate."),
    ] = 2.0,
    scenario: Annotated[str, typer.Option(help="Input/output tokens.")] = "128/128",
    data: Annotated[
        str, typer.Option(help="python-stdlib, or a folder or file of text.")
    ] = "python-stdlib",
    target_speedup: Annotated[
        float, typer.Option(min=0, help="Throughput as a multiple of the parent's.")
    ] = 1.5,
) -> None:
    """Write a recipe with comments: tokens, batches and memory by the model's size and the time."""
    from puzzle_search.pipeline.recipes.init import named_device, write_recipe

    written = write_recipe(
        model,
        out,
        device=named_device(gpu),
        hours=hours,
        scenario=scenario,
        source=data,
        target_speedup=target_speedup,
    )
    sizes = written.sizes
    print(f"{written.recipe}: {written.config.name} on {written.device.name}")
    if written.space is not None:
        print(f"{written.space}: search space")
    for stage, seconds in sizes.seconds.items():
        if stage != "distill" or sizes.distill_tokens is not None:
            print(f"  {stage:8} at least {seconds / 60:,.1f} min of computing")
    for note in written.notes:
        print(f"note: {note}")
    tell_next(f"puzzle-search run {quoted(written.recipe)}")
