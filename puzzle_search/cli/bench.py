"""``puzzle-search bench``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from puzzle_search.cli.options import DeviceOption, JsonOption, TorchDtypeOption


def bench(
    models: Annotated[list[Path], typer.Argument(help="Checkpoint folders, run in turn.")],
    input_len: Annotated[int, typer.Option(min=1, help="Prompt tokens.")] = 128,
    output_len: Annotated[int, typer.Option(min=1, help="Output tokens.")] = 128,
    batch_size: Annotated[int, typer.Option(min=1, help="Sequences in a batch.")] = 8,
    num_iters: Annotated[int, typer.Option(min=1, help="Counted runs of each model.")] = 10,
    device: DeviceOption = "cpu",
    dtype: TorchDtypeOption = "fp32",
    as_json: JsonOption = False,
) -> None:
    """Measure throughput of one or more models, interleaved: medians, p10 and p90."""
    from puzzle_search.checkpoint import load_decoder
    from puzzle_search.cost import Scenario
    from puzzle_search.evaluate import measure_throughput
    from puzzle_search.model.dtypes import torch_dtype
    from puzzle_search.profile import open_device

    opened = open_device(device)
    loaded = [
        load_decoder(folder, dtype=torch_dtype(dtype), device=opened.torch_device)
        for folder in models
    ]
    measured = measure_throughput(
        loaded,
        Scenario(input_len=input_len, output_len=output_len),
        [batch_size] * len(loaded),
        iterations=num_iters,
        clock=opened.clock,
    )
    figures = {str(f): m.as_dict() for f, m in zip(models, measured, strict=True)}
    if as_json:
        print(json.dumps({"device": opened.identity, "models": figures}))
        return
    print(f"{opened.name}, {input_len}/{output_len}, batch {batch_size}, {dtype}")
    first = measured[0].tokens_per_second
    for folder, entry in zip(models, measured, strict=True):
        print(
            f"{folder}: {entry.tokens_per_second:,.0f} tok/s "
            f"(p10 {entry.p10:,.0f}, p90 {entry.p90:,.0f}), "
            f"TTFT {entry.ttft_ms:.1f} ms, TPOT {entry.tpot_ms:.2f} ms, "
            f"{entry.memory_bytes / 1e6:.1f} MB, {entry.tokens_per_second / first:.2f} x the first"
        )
