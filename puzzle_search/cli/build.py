"""``puzzle-search build``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from puzzle_search.choices import TorchDtype
from puzzle_search.cli.options import ParentOption


def build(
    spec: Annotated[Path, typer.Argument(help="Architecture spec (YAML).")],
    parent: ParentOption,
    library: Annotated[Path, typer.Option(help="Complete block library.")],
    out: Annotated[Path, typer.Option(help="Checkpoint folder to write.")],
    dtype: Annotated[TorchDtype, typer.Option(help="Of the written weights.")] = "bf16",
) -> None:
    """Materialise the child as a Hugging Face checkpoint folder."""
    from puzzle_search.arch import ArchitectureSpec
    from puzzle_search.build import build_child

    folder = build_child(parent, library, ArchitectureSpec.from_file(spec), out, dtype=dtype)
    print(f"child written to {folder}")
