"""One job of distillation: all replacements of one layer, or of one run of layers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from puzzle_search.arch import Replacement, Subblock, parse_variant
from puzzle_search.checkpoint import subblock_from_tensors
from puzzle_search.checkpoint.block_library import BlockLibrary, BlockTensors, LibraryEntry
from puzzle_search.library.bld import (
    Batch,
    BldSettings,
    CurvePoint,
    Student,
    Training,
    block_error,
    load_tensors,
)
from puzzle_search.library.initialise import Calibration, block_candidates
from puzzle_search.library.memory import groups
from puzzle_search.library.parent import Parent, ParentLayer
from puzzle_search.library.states import LayerActivations
from puzzle_search.model.memory import gpu_memory_reported
from puzzle_search.model.rope import RotarySlice


@dataclass(frozen=True, kw_only=True)
class SeenLayer:
    """A parent layer's activations on training and on held-out tokens."""

    train: LayerActivations
    held_out: LayerActivations


@dataclass(frozen=True, kw_only=True)
class WindowJob:
    """What a worker needs to distil the replacements of one window of layers.

    Attributes:
        parent: read from its checkpoint.
        replacements: all of the same first and last layer.
        layers: activations of these layers; files where another process does the work.
        settings: how to train.
        calibration_tokens: tokens that initialisers look at.
        initialisers: names of those to try; none for all.
        singles: library whose singles pairs begin with, instead of initialisers.
        group_bytes: what students that train side by side may take.
    """

    parent: Parent
    replacements: tuple[Replacement, ...]
    layers: tuple[SeenLayer, ...]
    settings: BldSettings
    calibration_tokens: int
    initialisers: tuple[str, ...]
    singles: BlockLibrary | None
    group_bytes: float


@dataclass(frozen=True, kw_only=True)
class TrainedBlock:
    """A result: the entry, its tensors, and its loss curve."""

    entry: LibraryEntry
    tensors: BlockTensors
    curve: tuple[CurvePoint, ...]


def rows_of_a_step(settings: BldSettings, blocks: int, length: int) -> int:
    """Blocks of text in one step, and in every pass that is no step."""
    tokens = min(settings.batch_tokens, settings.tokens or settings.batch_tokens)
    return max(1, min(tokens // length, blocks))


def train_window(job: WindowJob) -> Iterator[TrainedBlock]:
    """Initialise and train every replacement of a job; yields them in its order.

    Raises:
        InputError: the GPU's memory ran out.
    """
    first, last, *_ = job.replacements[0]
    with gpu_memory_reported(f"distillation of layers {first} to {last}"):
        window = _Window(job)
        for group in groups(job.replacements, job.parent.config, job.group_bytes):
            yield from window.train(group)


@dataclass(frozen=True, kw_only=True)
class _Begun:
    """The best initialisation of a replacement so far."""

    student: Student
    method: str
    errors: dict[str, float]


class _Window:
    """The layers of a job, with the parent's layer at hand."""

    def __init__(self, job: WindowJob) -> None:
        self._job = job
        self._first = job.replacements[0][0]
        first, last = job.layers[0], job.layers[-1]
        # Students take the first layer's inputs and give the last one's outputs.
        self._train = replace(first.train, outputs=last.train.outputs)
        self._held_out = replace(first.held_out, outputs=last.held_out.outputs)
        self._blocks, self._length, _ = first.train.inputs.shape
        self._rows = rows_of_a_step(job.settings, self._blocks, self._length)
        self._angles: RotarySlice = job.parent.rotary(self._length)
        # A block for several layers stands where the first of them does.
        self._rotary = self._angles.of_layer(self._first, job.parent.config)
        self._layer: tuple[int, ParentLayer, dict[Subblock, Calibration]] | None = None

    def train(self, group: Sequence[Replacement]) -> Iterator[TrainedBlock]:
        begun = self._initialise(group)
        _, parent, _ = self._at(0)
        initial = {key: _copy(begun[key].student) for key in group}
        trainings = self._train_together([begun[key].student for key in group], parent)
        for key, training in zip(group, trainings, strict=True):
            student, errors, method = begun[key].student, begun[key].errors, begun[key].method
            loss_initial = loss_trained = errors[method]
            if training is not None:
                training.finish()
                loss_trained = self._error(student, parent)
                if not loss_trained < loss_initial:
                    load_tensors(student, initial[key])
                    loss_trained = loss_initial
            entry = LibraryEntry(
                first_layer=key[0],
                last_layer=key[1],
                attention=key[2],
                ffn=key[3],
                initialised_by=method,
                initial_errors=errors,
                tokens=training.curve[-1].tokens if training is not None else 0,
                loss_initial=loss_initial,
                loss_trained=loss_trained,
                sha256="",
            )
            curve = tuple(training.curve) if training is not None else ()
            yield TrainedBlock(entry=entry, tensors=_copy(student), curve=curve)

    def _initialise(self, group: Sequence[Replacement]) -> dict[Replacement, _Begun]:
        """The candidate of least held-out error of each, over all parent blocks of the window."""
        begun: dict[Replacement, _Begun] = {}
        for index in range(len(self._job.layers)):
            layer, parent, calibrations = self._at(index)
            for key in group:
                for method, tensors in self._candidates(key, layer, calibrations):
                    student = self._student(key, tensors)
                    error = self._error(student, parent)
                    errors = (begun[key].errors if key in begun else {}) | {method: error}
                    best = begun.get(key)
                    if best is None or error < best.errors[best.method]:
                        best = _Begun(student=student, method=method, errors=errors)
                    begun[key] = replace(best, errors=errors)
        return begun

    def _candidates(
        self, key: Replacement, layer: int, calibrations: dict[Subblock, Calibration]
    ) -> Iterator[tuple[str, BlockTensors]]:
        singles, (first, last, attention, ffn) = self._job.singles, key
        if singles is not None and first == last and attention and ffn:
            parts: BlockTensors = {
                "attention": singles.block(first, first, attention, "")["attention"],
                "ffn": singles.block(first, first, "", ffn)["ffn"],
            }
            return iter([("singles", parts)])
        return block_candidates(key, layer, calibrations, self._job.initialisers)

    def _student(self, key: Replacement, tensors: BlockTensors) -> Student:
        parent = self._job.parent
        return {
            part: subblock_from_tensors(
                parse_variant(part, key[2] if part == "attention" else key[3]),
                parent.config,
                named,
                dtype=parent.dtype,
                device=parent.device,
            )
            for part, named in tensors.items()
        }

    def _at(self, index: int) -> tuple[int, ParentLayer, dict[Subblock, Calibration]]:
        """A layer of the window; the last one asked for is kept."""
        number = self._first + index
        if self._layer is None or self._layer[0] != number:
            self._layer = None  # before the next is read: one layer in memory at most
            layer = self._job.parent.layer(number)
            seen = self._job.layers[index].train
            calibrations: dict[Subblock, Calibration] = {
                "attention": self._calibration("attention", number, layer, seen),
                "ffn": self._calibration("ffn", number, layer, seen),
            }
            self._layer = number, layer, calibrations
        return self._layer

    def _calibration(
        self, subblock: Subblock, number: int, layer: ParentLayer, seen: LayerActivations
    ) -> Calibration:
        attention = subblock == "attention"
        before = seen.inputs if attention else seen.middle
        after = seen.middle if attention else seen.outputs
        blocks = max(1, self._job.calibration_tokens // self._length)
        device = self._job.parent.device

        def chunks() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
            for rows in before.chunks(self._rows):
                part = slice(rows.start, min(rows.stop, blocks))
                if part.start < part.stop:
                    yield before.rows(part, device), after.rows(part, device)

        module = layer.attention if attention else layer.ffn
        config = self._job.parent.config
        rotary = self._angles.of_layer(number, config)
        return Calibration(config, subblock, module, chunks, rotary)

    def _error(self, student: Student, parent: ParentLayer, blocks: int | None = None) -> float:
        return block_error(
            student, parent, self._held_out, self._rotary, chunk=self._rows, blocks=blocks
        )

    def _train_together(
        self, students: Sequence[Student], parent: ParentLayer
    ) -> list[Training | None]:
        """Train students side by side, every batch read once; None for one without weights."""
        settings = self._job.settings
        step_tokens = self._rows * self._length
        steps = settings.tokens // step_tokens
        # Checks look at some of the held-out blocks: ten of them cost a twentieth of the training.
        held_out = self._held_out.inputs.shape[0]
        checked = min(held_out, max(self._rows, settings.tokens // (64 * self._length)))
        trainings = [
            Training(student, settings, steps, self._error(student, parent, checked))
            if steps and any(module.state_dict() for module in student.values())
            else None
            for student in students
        ]
        due = {math.ceil(steps * (n + 1) / settings.checks) for n in range(settings.checks)}
        starts = range(0, self._blocks - self._rows + 1, self._rows)
        for step in range(steps):
            going = [t for t in trainings if t is not None and not t.stopped]
            if not going:
                break
            start = starts[step % len(starts)]
            rows = slice(start, start + self._rows)
            batch = Batch.read(self._train, rows, self._job.parent.device)
            for training in going:
                training.step(step, parent, batch, self._rotary)
                if step + 1 in due:
                    error = self._error(training.student, parent, checked)
                    training.check(step + 1, (step + 1) * step_tokens, error)
        return trainings


def _copy(student: Student) -> BlockTensors:
    return {
        part: {name: value.detach().clone() for name, value in module.state_dict().items()}
        for part, module in student.items()
    }
