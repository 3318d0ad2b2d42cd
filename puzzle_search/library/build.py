"""Build the block library layer by layer; resumes where it was killed."""

from __future__ import annotations

import contextlib
import itertools
import shutil
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from puzzle_search.arch import ParentConfig, Replacement, SearchSpace, Subblock, shape_of
from puzzle_search.checkpoint import CheckpointReader
from puzzle_search.checkpoint.block_library import (
    BlockLibrary,
    BlockTensors,
    LibraryEntry,
    replacement_name,
)
from puzzle_search.errors import InputError
from puzzle_search.executor import Executor, InProcess
from puzzle_search.files import full_disk_reported, value_hash
from puzzle_search.library.bld import BldSettings
from puzzle_search.library.curves import write_curve
from puzzle_search.library.initialise import check_initialisers
from puzzle_search.library.job import SeenLayer, WindowJob, rows_of_a_step, train_window
from puzzle_search.library.memory import plan_memory
from puzzle_search.library.parent import Parent, ParentPass
from puzzle_search.model.dtypes import torch_dtype
from puzzle_search.progress import Progress
from puzzle_search.runtime import keep_freed_memory

_LAYERS_AT_ONCE = 8  # whose hidden states lie on disk for the workers of an executor
_WITH_LESS_ON_DISK = (
    "free some, or keep hidden states in memory with a larger --max-memory; "
    "then run the same command again to go on"
)


def build_library(
    parent: str | Path,
    space: SearchSpace,
    train_ids: torch.Tensor,
    held_out_ids: torch.Tensor,
    out: str | Path,
    settings: BldSettings,
    *,
    calibration_tokens: int = 16384,
    coupled: bool = False,
    start_from: str | Path | None = None,
    initialisers: Collection[str] = (),
    max_memory_bytes: float | None = None,
    dtype: str = "fp32",
    device: torch.device | str = "cpu",
    executor: Executor | None = None,
    progress: Progress | None = None,
) -> BlockLibrary:
    """Initialise and train every replacement of the space.

    Singles are trained beside the parent's other subblock on the parent's own activations
    (decoupled BLD, Puzzle, section 3.1), a block for a run of layers to give what the last of them
    gives. A replacement that training did not improve keeps its initialisation. Which others
    train beside it, the memory and the executor change nothing about a replacement's result.

    Args:
        parent: checkpoint folder.
        space: variants by layer, and runs.
        train_ids: (blocks, length) tokens to train on.
        held_out_ids: (blocks, length) tokens on which losses are reported.
        out: library folder; an unfinished one is continued.
        settings: how to train.
        calibration_tokens: tokens that initialisers look at.
        coupled: train every pair of variants together too (coupled BLD).
        start_from: complete library of the same parent: its singles are taken over, and pairs
            begin with them.
        initialisers: names of those to try; none for all.
        max_memory_bytes: for weights, students and hidden states together, in each process; what
            does not fit lies in files below ``out`` while it is needed.
        dtype: ``fp32``, or ``bf16`` with fp32 masters and hidden states; entries are stored in it.
        device: where to compute.
        executor: where layers are trained; in this process by default. Others read hidden
            states and parent from the file system, which they must share.
        progress: shows how far it is.

    Raises:
        InputError: the parent is damaged, or gives activations that are not finite; ``out``
            holds a library that was made from something else; the memory or the disk is too
            small; ``start_from`` lacks a single; or another process is building the library.
    """
    check_initialisers(initialisers)
    number_type = torch_dtype(dtype)
    config, reader = ParentConfig.from_file(parent), CheckpointReader(parent)
    reader.check(config)
    executor = executor or InProcess()
    alone = isinstance(executor, InProcess)
    replacements = list(planned_replacements(space, config, coupled=coupled))
    length = train_ids.shape[1]
    memory = plan_memory(
        replacements,
        config,
        settings,
        tokens=train_ids.numel() + held_out_ids.numel(),
        length=length,
        dtype=number_type,
        max_memory_bytes=max_memory_bytes,
        files_needed=not alone,
    )
    singles = None
    if start_from is not None:
        singles = BlockLibrary.from_folder(start_from, config, reader)
    library = BlockLibrary(out, config, reader)
    made_from = {
        "settings": asdict(settings) | {"calibration_tokens": calibration_tokens},
        "tokens_sha256": value_hash([train_ids.tolist(), held_out_ids.tolist()]),
        "dtype": dtype,
        "device": torch.device(device).type,
        "initialisers": sorted(initialisers),
        "singles_sha256": None if singles is None else singles.sha256,
    }
    if max_memory_bytes is None:
        keep_freed_memory(torch.device(device))
    where = Parent(config=config, reader=reader, dtype=number_type, device=torch.device(device))
    with full_disk_reported(library.folder, _WITH_LESS_ON_DISK), library.held():
        library.resume(made_from)
        todo = [key for key in replacements if key not in library.entries]
        progress = progress or Progress("library")
        done = len(replacements) - len(todo)
        with (
            _states_folder(library.folder) as folder,
            progress.over(len(replacements), done=done) as advance,
        ):
            if singles is not None:
                for key in [key for key in todo if _is_single(key)]:
                    library.add(*_taken_over(singles, key))
                    todo.remove(key)
                    advance(replacement_name(key))
            seen = _SeenLayers(
                ParentPass(
                    where,
                    [train_ids, held_out_ids],
                    rows_of_a_step(settings, *train_ids.shape),
                    folder if memory.states_on_disk else None,
                )
            )
            windows = _windows(todo)
            while windows:
                last = windows[0][0][1] + (0 if alone else _LAYERS_AT_ONCE - 1)
                wave = [window for window in windows if window[0][1] <= last]
                seen.pass_to(wave[-1][0][1], keep_from=min(window[0][0] for window in windows))
                jobs = [
                    WindowJob(
                        parent=where,
                        replacements=window,
                        layers=seen.layers(window[0][0], window[0][1]),
                        settings=settings,
                        calibration_tokens=calibration_tokens,
                        initialisers=tuple(initialisers),
                        singles=singles,
                        group_bytes=memory.group_bytes,
                    )
                    for window in wave
                ]
                for trained in executor.run(train_window, jobs):
                    key = trained.entry.key
                    write_curve(library.folder, key, trained.curve)
                    library.add(trained.entry, trained.tensors)
                    advance(replacement_name(key))
                windows = windows[len(wave) :]
            library.finish(made_from)
    return library


def planned_replacements(
    space: SearchSpace, config: ParentConfig, *, coupled: bool
) -> Iterator[Replacement]:
    """What is trained: the singles of every layer, pairs if coupled, and the runs.

    Shapes alone: in another type a variant has its shape's weights, rounded.
    """
    for layer in range(config.num_layers):
        attention, ffn = (
            [name for name in dict.fromkeys(map(shape_of, names)) if name != own]
            for names, own in (
                (space.attention[layer], config.own("attention", layer)),
                (space.ffn[layer], config.ffn),
            )
        )
        yield from ((layer, layer, name, "") for name in attention)
        yield from ((layer, layer, "", name) for name in ffn)
        if coupled:
            yield from ((layer, layer, *pair) for pair in itertools.product(attention, ffn))
    yield from dict.fromkeys((*run[:2], shape_of(run[2]), shape_of(run[3])) for run in space.runs)


def _windows(replacements: Sequence[Replacement]) -> list[tuple[Replacement, ...]]:
    """Replacements of the same layers, in the order in which the parent's pass ends them."""
    by_layers: dict[tuple[int, int], list[Replacement]] = {}
    for key in replacements:
        by_layers.setdefault((key[1], key[0]), []).append(key)
    return [tuple(by_layers[layers]) for layers in sorted(by_layers)]


def _is_single(key: Replacement) -> bool:
    return not (key[2] and key[3])


def _taken_over(singles: BlockLibrary, key: Replacement) -> tuple[LibraryEntry, BlockTensors]:
    """A single of another library.

    Raises:
        InputError: that library lacks it, or its file is damaged.
    """
    part: Subblock = "attention" if key[2] else "ffn"
    tensors = singles.block(*key)[part]
    if key not in singles.entries:
        raise InputError(
            f"{singles.folder} holds no {replacement_name(key)}",
            remedy="build that library with the same search space first",
        )
    return singles.entries[key], {part: tensors}


class _SeenLayers:
    """What the parent's pass saw, kept for as long as a window needs it."""

    def __init__(self, parent_pass: ParentPass) -> None:
        self._pass = parent_pass
        self._next = 0
        self._kept: dict[int, SeenLayer] = {}

    def pass_to(self, last: int, keep_from: int) -> None:
        """Pass through all layers up to ``last``; forget those before ``keep_from``."""
        self._forget(keep_from)
        while self._next <= last:
            train, held_out = self._pass.next_layer()
            self._kept[self._next] = SeenLayer(train=train, held_out=held_out)
            self._next += 1
            self._forget(keep_from)

    def _forget(self, keep_from: int) -> None:
        for index in [index for index in self._kept if index < keep_from]:
            layer = self._kept.pop(index)
            layer.train.delete()
            layer.held_out.delete()

    def layers(self, first: int, last: int) -> tuple[SeenLayer, ...]:
        """These layers, once passed through."""
        return tuple(self._kept[index] for index in range(first, last + 1))


@contextlib.contextmanager
def _states_folder(library: Path) -> Iterator[Path]:
    """A folder for hidden states, which are of no use once the library is built or given up."""
    folder = library / "hidden_states"
    shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
