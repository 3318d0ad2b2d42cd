"""``puzzle-search profile``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from puzzle_search.cli.options import DeviceOption, SpaceOption, TorchDtypeOption


def profile(
    model: Annotated[Path, typer.Option(help="config.json, or a checkpoint folder.")],
    space: SpaceOption,
    out: Annotated[Path, typer.Option(help="Profile folder to write.")],
    scenario: Annotated[str, typer.Option(help="Input/output tokens to cover.")] = "128/128",
    batches: Annotated[str, typer.Option(help="Batch sizes, with commas.")] = "1,8,32",
    device: DeviceOption = "cpu",
    dtype: TorchDtypeOption = "fp32",
    point_seconds: Annotated[
        float, typer.Option(help="Seconds for all variants at each point of the grid.")
    ] = 1.5,
) -> None:
    """Measure prefill and decode latency, weights and KV bytes of every variant on this device."""
    from puzzle_search.arch import ParentConfig, SearchSpace
    from puzzle_search.cost import Scenario, parse_dtype
    from puzzle_search.errors import InputError
    from puzzle_search.profile import ProfileGrid, measure_profile, open_device

    if not all(part.isdecimal() and int(part) for part in batches.split(",")):
        raise InputError(f"batches {batches!r} is not a list of sizes", remedy="write 1,8,32")
    config = ParentConfig.from_file(model)
    grid = ProfileGrid.around(
        Scenario.parse(scenario),
        tuple(int(part) for part in batches.split(",")),
        point_seconds=point_seconds,
    )
    opened = open_device(device)
    measured = measure_profile(
        config, SearchSpace.from_file(space, config), opened, parse_dtype(dtype), grid
    )
    measured.write(out)
    print(f"{len(measured.rows)} points on {opened.name}, written to {out}")
