"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

ParentOption = Annotated[Path, typer.Option("--parent", help="Checkpoint folder of the parent.")]
SpaceOption = Annotated[Path, typer.Option("--space", help="Search space (YAML).")]
DataOption = Annotated[
    str, typer.Option("--data", help="python-stdlib, or a folder or file of text.")
]
LengthOption = Annotated[int, typer.Option("--length", min=2, help="Tokens in a block of text.")]
DeviceOption = Annotated[str, typer.Option("--device", help="cpu or cuda.")]
TorchDtypeOption = Annotated[str, typer.Option("--dtype", help="fp32 or bf16.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
