"""``puzzle-search inspect``."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from puzzle_search.cli.options import JsonOption


def inspect(
    model: Annotated[Path, typer.Argument(help="Checkpoint folder, or a config.json.")],
    spec: Annotated[
        Path | None, typer.Option(help="Write the architecture spec to this file (YAML).")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show the layers of any checkpoint whose layers differ: ours, Nemotron's, Puzzletron's."""
    from rich.console import Console

    from puzzle_search.arch import architecture_parameters, kv_values_per_token
    from puzzle_search.arch.change import SubblockChange, parent_size
    from puzzle_search.checkpoint import read_model_config
    from puzzle_search.cli.layer_map import layer_map, legend, shows_bars
    from puzzle_search.solve.problem.portability import verdicts

    config, found = read_model_config(model)
    parameters = architecture_parameters(found, config)
    kv_values = sum(kv_values_per_token(b.attention_variant, config) for b in found.blocks)
    loads = {v.engine: v for v in verdicts(found, config)}
    if spec is not None:
        found.write(spec)
    if as_json:
        report = {
            "parent": found.parent,
            "parameters": parameters,
            "kv_values_per_token": kv_values,
            "blocks": [block.as_dict() for block in found.blocks],
            "engines": {
                name: {"as_built": v.as_built, "exported": v.exported, "reasons": list(v.reasons)}
                for name, v in loads.items()
            },
        }
        print(json.dumps(report))
        return
    console = Console(highlight=False)
    print(
        f"{model}: {len(found.blocks)} blocks, hidden size {config.hidden_size:,}, "
        f"{parameters:,} parameters, {kv_values:,} numbers of KV cache a token"
    )
    for subblock in ("attention", "ffn"):
        counts = Counter(getattr(block, subblock) for block in found.blocks)
        print(f"{subblock:9}  " + ", ".join(f"{n} x {name}" for name, n in counts.most_common()))
    rows = {
        "attention": [
            SubblockChange.of(block.attention_variant, parent_size("attention", config))
            for block in found.blocks
        ],
        "FFN": [
            SubblockChange.of(block.ffn_variant, parent_size("ffn", config))
            for block in found.blocks
        ],
    }
    plain = not shows_bars(console.encoding)
    for line in layer_map(rows, console.width, plain=plain):
        console.print(line)
    console.print(legend(plain=plain), style="dim", markup=False)
    for name, verdict in loads.items():
        told = "yes" if verdict.as_built else "by export" if verdict.exported else "no"
        print(f"{name:9}  {told}" + "".join(f"; {reason}" for reason in verdict.reasons))
    if spec is not None:
        print(f"spec written to {spec}")
