"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from puzzle_search.choices import (
    Backend,
    ComputeDtype,
    DeviceName,
    ExecutorName,
    LoadingEngine,
    MeasuredDtype,
    ServingDtype,
    TorchDtype,
)

SERVING_PANEL, CHILD_PANEL = "Limits of serving", "Limits of the child"
SEARCH_PANEL = "Search"


def text_to_write(path: Path | None) -> Path | None:
    """A file that a command will write, or ``-`` for standard output; checked before it begins."""
    from puzzle_search.files import is_stream

    return path if path is None or is_stream(path) else file_to_write(path)


def file_to_write(path: Path | None) -> Path | None:
    """A file that a command will write, checked before it begins."""
    from puzzle_search.files import check_writable

    if path is not None:
        check_writable(path)
    return path


def folder_to_write(what: str, *marks: str) -> Callable[[Path | None], Path | None]:
    """Check a folder before a command begins that writes into it: new, empty, or its own kind.

    Args:
        what: it should be, for people.
        marks: patterns of names, any of which such a folder has in it.
    """

    def check(path: Path | None) -> Path | None:
        from puzzle_search.files import check_own_folder

        if path is not None:
            check_own_folder(path, marks, what)
        return path

    return check


ChildArgument = Annotated[
    Path,
    typer.Argument(
        metavar="CHILD",
        help="Architecture spec (YAML), a folder of 'build' or 'distill', or a run directory.",
    ),
]
RunArgument = Annotated[
    Path | None,
    typer.Argument(
        metavar="[RUN]",
        help="Run directory: its parent, space, scores, profile and scenario, and of its recipe "
        "what is not asked otherwise.",
        show_default=False,
    ),
]
ParentOption = Annotated[Path, typer.Option("--parent", help="Checkpoint folder of the parent.")]
SpaceOption = Annotated[Path, typer.Option("--space", help="Search space (YAML).")]
DataOption = Annotated[
    str, typer.Option("--data", help="python-stdlib, or a folder or file of text.")
]
TrainingDataOption = Annotated[
    str,
    typer.Option(
        "--data",
        help="python-stdlib, a folder or file of text, or self: what the parent writes, kept under "
        "runs/self-text; self:500000 is so many tokens.",
    ),
]
LengthOption = Annotated[int, typer.Option("--length", min=2, help="Tokens in a block of text.")]
DeviceOption = Annotated[DeviceName, typer.Option("--device", help="What computes.")]
TorchDtypeOption = Annotated[TorchDtype, typer.Option("--dtype", help="What it computes in.")]
ComputeDtypeOption = Annotated[
    ComputeDtype, typer.Option("--dtype", help="What it computes in; auto: the fastest here.")
]
MeasuredDtypeOption = Annotated[MeasuredDtype, typer.Option("--dtype", help="Serving precision.")]
ExecutorOption = Annotated[
    ExecutorName, typer.Option("--executor", help="Where jobs run: here, or on a Ray cluster.")
]
WorkersOption = Annotated[
    int | None,
    typer.Option("--workers", min=1, help="Local processes. (default: 1, this one)"),
]
AddressOption = Annotated[
    str | None,
    typer.Option("--address", help="host:port of the Ray cluster. (default: auto, this machine's)"),
]
GpusPerJobOption = Annotated[
    int | None,
    typer.Option("--gpus-per-job", min=0, help="GPUs of each job on the Ray cluster. (default: 0)"),
]
MaxMemoryOption = Annotated[
    str | None,
    typer.Option(
        "--max-memory",
        help="Memory to keep within, e.g. 4GiB. (default: no limit)",
        show_default=False,
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]

# What specs are held against; what is left out is what the spec was solved for.
SettingModelOption = Annotated[
    str | None,
    typer.Option("--model", help="Parent: shipped example or folder; the spec's own by default."),
]
SettingGpuOption = Annotated[
    str | None,
    typer.Option("--gpu", help="GPU with a cost model, or a profile folder; else the spec's own."),
]
SettingScenarioOption = Annotated[
    list[str] | None,
    typer.Option("--scenario", help="Input/output tokens, repeatable; else the spec's own."),
]
SettingEngineOption = Annotated[
    str | None, typer.Option("--engine", help="Serving engine; else the spec's own.")
]
SettingDtypeOption = Annotated[
    ServingDtype | None, typer.Option("--dtype", help="Serving precision; else the spec's own.")
]
SettingTpOption = Annotated[
    str | None, typer.Option("--tp", help="TP degrees: 1, or 1,2,4, or any; else the spec's own.")
]
SettingScoresOption = Annotated[
    Path | None, typer.Option("--scores", help="Score table instead of the model's own.")
]

# What a report or a picture is made of.
ShownSources = Annotated[
    list[Path],
    typer.Argument(
        metavar="RUN_OR_SPECS...",
        help="Architecture specs (YAML), folders of 'frontier --out', of 'build' or of 'distill', "
        "or a run directory.",
    ),
]

# What is asked of a search.
AskedModelOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        help="Shipped example, a run directory, or a folder: config.json, space.yaml, scores.csv. "
        "(default: llama-3.1-70b)",
        show_default=False,
    ),
]
AskedGpuOption = Annotated[
    str, typer.Option("--gpu", help="GPU with a cost model, or a profile folder.")
]
AskedScenarioOption = Annotated[
    list[str] | None,
    typer.Option(
        "--scenario",
        help="Input/output tokens; again for more, with limits of its own: "
        "2048/128:tps=900,ttft=500 (keys: tps, user-tps, ttft, tpot, latency). "
        "(default: 128/1024)",
        show_default=False,
    ),
]
AskedEngineOption = Annotated[
    str | None, typer.Option("--engine", help="Serving engine. (default: the GPU's first)")
]
AskedDtypeOption = Annotated[
    ServingDtype | None,
    typer.Option(
        "--dtype",
        help="Serving precision. (default: the parent's own, or the smallest from 8 bits up)",
    ),
]
AskedTpOption = Annotated[str, typer.Option("--tp", help="TP degrees: 1, or 1,2,4, or any.")]
AskedScoresOption = Annotated[
    Path | None,
    typer.Option(
        "--scores", help="Score table instead of the model's own.", rich_help_panel=SEARCH_PANEL
    ),
]
AskedSpaceOption = Annotated[
    Path | None,
    typer.Option(
        "--space", help="Search space instead of the model's own.", rich_help_panel=SEARCH_PANEL
    ),
]
MetricOption = Annotated[
    str,
    typer.Option(
        "--metric",
        help="Metric of the score table, or a mix: kl + 0.1*lm_loss.",
        rich_help_panel=SEARCH_PANEL,
    ),
]
AskedMetricOption = Annotated[
    str | None,
    typer.Option(
        "--metric",
        help="Metric of the score table, or a mix: kl + 0.1*lm_loss. (default: kl)",
        rich_help_panel=SEARCH_PANEL,
        show_default=False,
    ),
]
MemoryOption = Annotated[
    str | None,
    typer.Option(
        "--memory", help="Of each device, e.g. 60GB or 80000MiB.", rich_help_panel=SERVING_PANEL
    ),
]
MaxParamsOption = Annotated[
    float | None,
    typer.Option("--max-params", help="Billions of parameters.", rich_help_panel=CHILD_PANEL),
]
MaxScoreOption = Annotated[
    float | None, typer.Option("--max-score", help="Summed damage.", rich_help_panel=CHILD_PANEL)
]
LimitOption = Annotated[
    list[str] | None,
    typer.Option(
        "--limit",
        help="""Linear: 'sum(attention == "no_op") <= 20'; again for more.""",
        rich_help_panel=CHILD_PANEL,
    ),
]
FreezeOption = Annotated[
    str | None,
    typer.Option(
        "--freeze",
        help="Layers that stay the parent's: 0,1,76-79.",
        rich_help_panel=CHILD_PANEL,
    ),
]
PortableOption = Annotated[
    LoadingEngine | None,
    typer.Option(
        "--portable", help="Engine that must load the child.", rich_help_panel=CHILD_PANEL
    ),
]
MaxSecondsOption = Annotated[
    float,
    typer.Option("--max-seconds", help="Time limit of a search.", rich_help_panel=SEARCH_PANEL),
]
BackendOption = Annotated[
    Backend,
    typer.Option("--backend", help="Solver of the exact step.", rich_help_panel=SEARCH_PANEL),
]
OutSpecOption = Annotated[
    Path | None,
    typer.Option("--out", help="Write the architecture spec here.", callback=text_to_write),
]
