"""``puzzle-search profile``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from puzzle_search.choices import DeviceName, ProfileDtype, ProfileEngine
from puzzle_search.cli.options import (
    AddressOption,
    ExecutorOption,
    GpusPerJobOption,
    JsonOption,
    SpaceOption,
    folder_to_write,
)


def profile(
    model: Annotated[
        str, typer.Option(help="Shipped example, config.json, or a checkpoint folder.")
    ],
    space: SpaceOption,
    out: Annotated[
        Path,
        typer.Option(
            help="Profile folder to write.", callback=folder_to_write("a profile", "profile.yaml")
        ),
    ],
    scenario: Annotated[
        list[str] | None,
        typer.Option(help="Cover just these input/output tokens, repeatable."),
    ] = None,
    batches: Annotated[
        str | None,
        typer.Option(help="Batch sizes: 1-64 to cover all, 1,8,64 for these. (default: 1-1024)"),
    ] = None,
    contexts: Annotated[
        str | None,
        typer.Option(help="Tokens attended to in decode. (default: 128-32768, as far as it goes)"),
    ] = None,
    prompts: Annotated[
        str | None, typer.Option(help="Prompt lengths. (default: 128-32768, as far as it goes)")
    ] = None,
    tp: Annotated[str, typer.Option(help="TP degrees, with commas.")] = "1",
    device: Annotated[
        DeviceName | None, typer.Option(help="What torch computes on. (default: cpu)")
    ] = None,
    dtype: Annotated[
        ProfileDtype | None,
        typer.Option(help="Serving precision. (default: fp32; bf16 of vllm, q8_0 of llama.cpp)"),
    ] = None,
    engine: Annotated[
        ProfileEngine, typer.Option(help="What runs the variants; it must be installed.")
    ] = "torch",
    engine_python: Annotated[
        str | None,
        typer.Option(
            help="Python interpreter that has the engine. (default: the one that runs this)"
        ),
    ] = None,
    max_minutes: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="After which nothing is refined any more. (default: 8 on a GPU, 0.75 on a CPU)",
        ),
    ] = None,
    executor: ExecutorOption = "local",
    address: AddressOption = None,
    gpus_per_job: GpusPerJobOption = None,
    jobs: Annotated[
        int | None,
        typer.Option(min=1, help="Parts of the work. (default: 1; on a Ray cluster, 8)"),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Measure what every variant costs on this device: latency, weights, KV cache, workspace.

    Killed and run again, it goes on where it was.
    """
    from puzzle_search.arch import ParentConfig, SearchSpace
    from puzzle_search.cost import Scenario, parse_dtype
    from puzzle_search.engines.process import worker_command
    from puzzle_search.errors import InputError
    from puzzle_search.executor import open_executor
    from puzzle_search.files import Journal
    from puzzle_search.profile import ProfileGrid, Sizes, measure_profile, open_device
    from puzzle_search.profile.engines import ENGINES, measure_engine_profile
    from puzzle_search.solve.question.targets import parse_tp

    served = ENGINES.get(engine)
    if engine_python and not served:
        raise InputError(
            "--engine-python is for engines of their own", remedy="add --engine, or leave it out"
        )
    if served and (executor != "local" or address or gpus_per_job or jobs):
        raise InputError(
            f"{served.installed.name} is measured by one job on this machine",
            remedy="leave out --executor, --address, --gpus-per-job and --jobs, or --engine",
        )
    if served and (device is not None or max_minutes is not None):
        raise InputError(
            f"{served.installed.name} chooses its device, and is measured to the end",
            remedy="leave out --device and --max-minutes, or --engine",
        )
    if scenario and (contexts or prompts):
        raise InputError(
            "a scenario says which contexts and prompts are covered",
            remedy="leave out --contexts and --prompts, or --scenario",
        )
    config = ParentConfig.find(model)
    asked = {
        name: Sizes.parse(text, f"--{name}")
        for name, text in (("batches", batches), ("contexts", contexts), ("prompts", prompts))
        if text is not None
    }
    grid = ProfileGrid.spanning(config, **asked, tp=parse_tp(tp))
    if scenario:
        grid = ProfileGrid.around(
            *map(Scenario.parse, scenario),
            batches=grid.batches,
            tp=grid.tp,
            adaptive=grid.adaptive,
        )
    searched = SearchSpace.from_file(space, config)
    number = parse_dtype(dtype or (served.dtypes[0] if served else "fp32"))
    journal = Journal(out.with_name(f"{out.name}.journal.jsonl"))
    if served:
        measured = measure_engine_profile(
            served,
            config,
            searched,
            number,
            served.grid(config, grid),
            journal=journal,
            command=worker_command(served.installed, engine_python),
        )
    else:
        measured = measure_profile(
            config,
            searched,
            open_device(device or "cpu"),
            number,
            grid,
            max_minutes=max_minutes,
            journal=journal,
            executor=open_executor(executor, address=address, gpus_per_job=gpus_per_job),
            jobs=jobs or (8 if executor == "ray" else 1),
        )
    measured.write(out)
    journal.path.unlink()
    held_out, skipped = measured.sidecar["interpolation"], measured.sidecar["skipped"]
    name = measured.sidecar["device"]["name"]
    steady = sum(row.steady for row in measured.rows)
    if as_json:
        print(
            json.dumps(
                {
                    "profile": str(out),
                    "device": name,
                    "points": len(measured.rows),
                    "steady": steady,
                    "interpolation": held_out,
                    "skipped": skipped,
                }
            )
        )
        return
    print(f"{len(measured.rows)} points on {name}, written to {out}")
    print(f"steady within 2%: {steady}")
    if held_out["points"]:
        print(
            f"interpolation at {held_out['points']} held-out points: median "
            f"{held_out['median']:.1%}, worst {held_out['worst']:.1%}"
        )
    if skipped:
        print(f"skipped: {len(skipped)}, listed in {out / 'profile.yaml'}")
