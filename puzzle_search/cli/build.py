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
    from puzzle_search.arch import ArchitectureSpec, ParentConfig
    from puzzle_search.build import build_child
    from puzzle_search.solve.problem.portability import verdicts

    chosen = ArchitectureSpec.from_file(spec)
    folder = build_child(parent, library, chosen, out, dtype=dtype)
    print(f"child written to {folder}")
    for verdict in verdicts(chosen, ParentConfig.from_file(parent)):
        told = "; ".join(verdict.reasons)
        if verdict.exported:
            told = f"puzzle-search export {out} --to {verdict.engine} --out ..."
        elif verdict.as_built:
            told = "loads the folder as it is"
        print(f"  {verdict.engine:10} {told}")
