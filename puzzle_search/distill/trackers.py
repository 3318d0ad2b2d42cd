"""Metrics to TensorBoard, W&B or trackio, beside ``metrics.jsonl``."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from puzzle_search.errors import InputError
from puzzle_search.files import value_hash
from puzzle_search.packages import installed

TRACKERS = ("tensorboard", "wandb", "trackio")
Log = Callable[[Mapping[str, float]], None]

_PROJECT = "puzzle-search"


@contextlib.contextmanager
def tracking(
    name: str | None, folder: Path, made_from: Mapping[str, Any], *, steps_done: int
) -> Iterator[Log]:
    """Yield a function that takes one line of metrics; without a name it does nothing.

    Args:
        name: ``tensorboard``, ``wandb`` or ``trackio``.
        folder: of the run; TensorBoard's files are put into ``tensorboard`` there.
        made_from: shown as the run's configuration.
        steps_done: steps before which a resumed run stands.

    Raises:
        InputError: the name is another.
        MissingDependencyError: the tracker is not installed.
    """
    if name is None:
        yield lambda entry: None
    elif name == "tensorboard":
        with _tensorboard(folder / "tensorboard", steps_done) as log:
            yield log
    elif name in TRACKERS:
        with _hosted(name, folder, made_from) as log:
            yield log
    else:
        raise InputError(
            f"tracker {name!r} is not known", remedy=f"use one of {', '.join(TRACKERS)}"
        )


@contextlib.contextmanager
def _tensorboard(folder: Path, steps_done: int) -> Iterator[Log]:
    with installed():
        importlib.import_module("tensorboard")
    from torch.utils.tensorboard import SummaryWriter

    # Steps after the checkpoint are done again: what was shown of them is purged.
    writer = SummaryWriter(str(folder), purge_step=steps_done + 1 if steps_done else 0)

    def log(entry: Mapping[str, float]) -> None:
        for key, value in entry.items():
            if key != "step":
                writer.add_scalar(key, value, int(entry["step"]))

    try:
        yield log
    finally:
        writer.close()


@contextlib.contextmanager
def _hosted(name: str, folder: Path, made_from: Mapping[str, Any]) -> Iterator[Log]:
    """W&B, or trackio, which has its interface."""
    with installed():
        module = importlib.import_module(name)
    # The name tells the run apart from others, and is the same when it is resumed.
    run_name = f"{folder.name.removesuffix('.run')}-{value_hash(made_from)[:8]}"
    options: dict[str, Any] = {"id": run_name, "dir": str(folder)} if name == "wandb" else {}
    module.init(project=_PROJECT, name=run_name, config=dict(made_from), resume="allow", **options)
    try:
        yield lambda entry: module.log(dict(entry), step=int(entry["step"]))
    finally:
        module.finish()
