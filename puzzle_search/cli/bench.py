"""``puzzle-search bench``: how fast models are served."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from puzzle_search.choices import DeviceName, MeasuredDtype
from puzzle_search.cli.checked import CheckedCommand
from puzzle_search.cli.default_group import DefaultGroup
from puzzle_search.cli.options import (
    DeviceOption,
    JsonOption,
    MeasuredDtypeOption,
    folder_to_write,
    text_to_write,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from puzzle_search.evaluate import Benched, ServingBench
    from puzzle_search.profile import Device

_ITERATIONS = 10

bench_app = typer.Typer(
    cls=DefaultGroup,
    help="Measure how fast models are served: bench MODEL... is bench latency MODEL...",
    no_args_is_help=True,
)
ModelsArgument = Annotated[
    list[str],
    typer.Argument(
        help="Checkpoint folders. With random weights: specs, config.json files, shipped examples."
    ),
]
InputLenOption = Annotated[int, typer.Option("--input-len", min=1, help="Prompt tokens.")]
OutputLenOption = Annotated[int, typer.Option("--output-len", min=1, help="Output tokens.")]
ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model", help="Parent of specs: config.json, folder or example; else the spec's own."
    ),
]
WarmupOption = Annotated[
    int, typer.Option("--num-iters-warmup", min=0, help="Runs of each model that do not count.")
]


@bench_app.command("latency", cls=CheckedCommand)
def latency(
    models: ModelsArgument,
    input_len: InputLenOption = 128,
    output_len: OutputLenOption = 128,
    batch_size: Annotated[
        str,
        typer.Option(
            "--batch-size", "--batch", help="Sequences in a batch; auto for the fastest that fits."
        ),
    ] = "8",
    num_iters: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Counted runs of each model. (default: 10, and up to 30 while they spread by more "
            "than the models differ)",
        ),
    ] = None,
    num_iters_warmup: Annotated[
        int | None,
        typer.Option(min=0, help="Runs of each model that do not count. (default: 1)"),
    ] = None,
    max_load: Annotated[
        bool, typer.Option("--max-load", help="Serve requests by continuous batching instead.")
    ] = False,
    requests: Annotated[
        int | None,
        typer.Option(min=1, help="Requests under --max-load. (default: 3 to each slot)"),
    ] = None,
    model: ModelOption = None,
    device: DeviceOption = "cpu",
    dtype: MeasuredDtypeOption = "fp32",
    output_json: Annotated[
        Path | None,
        typer.Option(help="Also write the JSON object there.", callback=text_to_write),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Measure models side by side: throughput, TTFT, TPOT and latency of whole batches."""
    from puzzle_search.errors import InputError
    from puzzle_search.evaluate import spread_remarks
    from puzzle_search.files import is_stream, write_text
    from puzzle_search.report.serving import serving_table

    if requests is not None and not max_load:
        raise InputError("--requests is of --max-load", remedy="add --max-load, or drop it")
    if max_load and (num_iters is not None or num_iters_warmup is not None):
        raise InputError(
            "--max-load serves requests, not iterations",
            remedy="say how many with --requests, or drop --max-load",
        )
    batch = _parse_batch(batch_size)
    opened, bench = _open(models, model, f"{input_len}/{output_len}", device, dtype)
    if max_load:
        measured = bench.max_load(batch=batch, requests=requests)
    else:
        measured = bench.batches(
            batch=batch,
            iterations=num_iters or _ITERATIONS,
            most_iterations=num_iters or 3 * _ITERATIONS,
            warm_up=1 if num_iters_warmup is None else num_iters_warmup,
        )
    result = _heading(opened, bench) | {
        "load": "max" if max_load else "batch",
        "models": {entry.model.name: entry.as_dict() for entry in measured},
    }
    if output_json is not None:
        write_text(output_json, json.dumps(result, indent=1))
        if is_stream(output_json):
            return
    if as_json:
        print(json.dumps(result))
        return
    print(f"{opened.name}, {bench.scenario}, {dtype}, " + _what(measured, max_load))
    for entry in measured:
        print(f"{entry.model.name} ({entry.model.weights}): {entry.choice}")
    print(serving_table(list(result["models"].values()), list(result["models"])))
    if not max_load:
        for remark in spread_remarks(result["models"], "--num-iters"):
            print(f"note: {remark}")


@bench_app.command(cls=CheckedCommand)
def sweep(
    models: ModelsArgument,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for sweep.csv, sweep.json, sweep.png.",
            callback=folder_to_write("a sweep", "sweep.csv"),
        ),
    ] = None,
    input_len: InputLenOption = 128,
    output_len: OutputLenOption = 128,
    max_batch_size: Annotated[
        int, typer.Option(min=1, help="Batches are 1, 2, 4 and so on up to it.")
    ] = 256,
    num_iters: Annotated[int, typer.Option(min=1, help="Counted runs of each point.")] = 3,
    num_iters_warmup: WarmupOption = 1,
    model: ModelOption = None,
    device: DeviceOption = "cpu",
    dtype: MeasuredDtypeOption = "fp32",
    as_json: JsonOption = False,
) -> None:
    """Throughput against tokens per second of each user, over batch sizes; parent first."""
    from puzzle_search.report.sweep import SweepReport

    opened, bench = _open(models, model, f"{input_len}/{output_len}", device, dtype)
    found = bench.sweep(max_batch=max_batch_size, iterations=num_iters, warm_up=num_iters_warmup)
    report = SweepReport(
        heading=_heading(opened, bench),
        points=tuple({"model": p.model.name} | p.as_dict() for p in found.points),
        ended=found.ended,
    )
    if out is not None:
        report.write(out)
    if as_json:
        print(json.dumps(report.as_dict()))
        return
    print(report.table())
    if out is not None:
        print(f"written to {out}")


@bench_app.command(cls=CheckedCommand)
def gguf(
    files: Annotated[list[Path], typer.Argument(help="GGUF files; the first is compared with.")],
    input_len: InputLenOption = 128,
    output_len: OutputLenOption = 128,
    batch_size: Annotated[
        int, typer.Option("--batch-size", "--batch", min=1, help="Prompts at once.")
    ] = 1,
    num_iters: Annotated[int, typer.Option(min=1, help="Counted runs of each file.")] = 10,
    num_iters_warmup: WarmupOption = 1,
    engine_python: Annotated[
        str | None,
        typer.Option(help="Python interpreter that has xllamacpp. (default: this one)"),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Measure GGUF files side by side in llama.cpp's server on this machine, in turn."""
    from puzzle_search.cost import Scenario
    from puzzle_search.evaluate import measure_gguf_files
    from puzzle_search.report.serving import serving_table

    figures = measure_gguf_files(
        files,
        Scenario(input_len=input_len, output_len=output_len),
        batch=batch_size,
        iterations=num_iters,
        warm_up=num_iters_warmup,
        python=engine_python,
    )
    rows = [one.as_dict() for one in figures]
    if as_json:
        print(json.dumps({str(file): row for file, row in zip(files, rows, strict=True)}))
        return
    print(f"llama.cpp, {input_len}/{output_len}, batch {batch_size}, files in turn")
    print(serving_table(rows, [file.name for file in files]))


def _parse_batch(text: str) -> int | None:
    from puzzle_search.errors import InputError

    if text == "auto":
        return None
    if not text.isdecimal() or not int(text):
        raise InputError(f"batch size {text!r} is not a number from 1 up", remedy="or write auto")
    return int(text)


def _open(
    names: list[str], model: str | None, scenario: str, device: DeviceName, dtype: MeasuredDtype
) -> tuple[Device, ServingBench]:
    from puzzle_search.cost import Scenario
    from puzzle_search.errors import InputError
    from puzzle_search.evaluate import ServedModel, ServingBench
    from puzzle_search.profile import open_device
    from puzzle_search.runtime import precision_on

    if len(set(names)) < len(names):
        raise InputError("a model is named twice", remedy="name each once")
    opened = open_device(device)
    bench = ServingBench(
        models=tuple(ServedModel.find(name, model=model) for name in names),
        scenario=Scenario.parse(scenario),
        precision=precision_on(dtype, opened.torch_device),
        device=opened.torch_device,
        memory_limit_bytes=opened.memory_limit_bytes,
        clock=opened.clock,
    )
    return opened, bench


def _heading(opened: Device, bench: ServingBench) -> dict[str, Any]:
    return {
        "device": opened.identity,
        "input_len": bench.scenario.input_len,
        "output_len": bench.scenario.output_len,
        "dtype": bench.precision.name,
    }


def _what(measured: Sequence[Benched], max_load: bool) -> str:
    if max_load:
        return "continuous batching of requests, models one after the other"
    if len(measured) == 1:
        return "batch by batch"
    if measured[0].in_turn:
        return "batch by batch, models in turn"
    return "batch by batch, models one after the other: together they do not fit in memory"
