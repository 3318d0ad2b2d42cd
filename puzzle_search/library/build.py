"""Build the block library layer by layer; resumes where it was killed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from puzzle_search.arch import ParentConfig, Replacement, SearchSpace, Subblock, parse_variant
from puzzle_search.checkpoint import CheckpointReader, load_decoder, subblock_from_tensors
from puzzle_search.checkpoint.block_library import BlockLibrary, LibraryEntry
from puzzle_search.errors import InputError
from puzzle_search.files import value_hash
from puzzle_search.library.bld import (
    BldSettings,
    LayerActivations,
    ParentLayer,
    block_loss,
    train_student,
)
from puzzle_search.library.initialise import Calibration, initial_candidates
from puzzle_search.model import SubblockModule
from puzzle_search.model.rope import RotarySlice
from puzzle_search.progress import Progress

_SUBBLOCKS: tuple[Subblock, Subblock] = ("attention", "ffn")
_ROWS = 32  # blocks of tokens that pass through a parent layer at once


@dataclass(frozen=True, kw_only=True)
class _Job:
    layer: int
    subblock: Subblock
    variant: str

    @property
    def key(self) -> Replacement:
        names = (self.variant, "") if self.subblock == "attention" else ("", self.variant)
        return (self.layer, self.layer, *names)


def build_library(
    parent: str | Path,
    space: SearchSpace,
    train_ids: torch.Tensor,
    held_out_ids: torch.Tensor,
    out: str | Path,
    settings: BldSettings,
    *,
    calibration_tokens: int = 16384,
    progress: Progress | None = None,
) -> BlockLibrary:
    """Initialise and train every variant of the space that has weights of its own.

    Variants are trained apart (decoupled BLD): each beside the parent's other subblock, on the
    parent's own activations. A variant that training did not improve keeps its initialisation.

    Args:
        parent: checkpoint folder.
        space: variants by layer.
        train_ids: (blocks, length) tokens to train on.
        held_out_ids: (blocks, length) tokens on which losses are reported.
        out: library folder; an unfinished one is continued.
        settings: how to train.
        calibration_tokens: tokens that initialisers look at.
        progress: shows how far it is.

    Raises:
        InputError: the parent is damaged, or gives activations that are not finite; or ``out``
            holds a library that was made from something else.
    """
    model = load_decoder(parent)
    config = model.config
    library = BlockLibrary(out, config, CheckpointReader(parent))
    made_from = {
        "settings": asdict(settings) | {"calibration_tokens": calibration_tokens},
        "tokens_sha256": value_hash([train_ids.tolist(), held_out_ids.tolist()]),
    }
    library.resume(made_from)
    jobs = list(_jobs(config, space))
    todo = [job for job in jobs if job.key not in library.entries]
    progress = progress or Progress("library")
    with progress.over(len(jobs), done=len(jobs) - len(todo)) as advance:
        if todo:
            train, held_out = model.embedding(train_ids), model.embedding(held_out_ids)
            rotary = model.rotary.slice(0, train_ids.shape[1], train)
            for index, block in enumerate(model.blocks):
                layer = ParentLayer(attention=block.attention, ffn=block.ffn)  # type: ignore[arg-type]
                seen = _activations(layer, train, rotary, index)
                seen_held_out = _activations(layer, held_out, rotary, index)
                for job in (job for job in todo if job.layer == index):
                    entry, student = _run_job(
                        job,
                        config,
                        layer,
                        seen,
                        seen_held_out,
                        rotary,
                        settings,
                        calibration_tokens,
                    )
                    library.add(entry, {job.subblock: student.state_dict()})
                    advance(f"layer {index} {job.variant}")
                train, held_out = seen.outputs, seen_held_out.outputs
    library.finish(made_from)
    return library


def _jobs(config: ParentConfig, space: SearchSpace) -> Iterator[_Job]:
    for layer in range(config.num_layers):
        for subblock in _SUBBLOCKS:
            own = config.attention if subblock == "attention" else config.ffn
            for variant in space.variants(subblock)[layer]:
                if variant != own and parse_variant(subblock, variant).tensors(config):
                    yield _Job(layer=layer, subblock=subblock, variant=variant)


@torch.no_grad()
def _activations(
    layer: ParentLayer, inputs: torch.Tensor, rotary: RotarySlice, index: int
) -> LayerActivations:
    middle = torch.cat([layer.attention(rows, rotary, None) for rows in inputs.split(_ROWS)])
    outputs = torch.cat([layer.ffn(rows, rotary, None) for rows in middle.split(_ROWS)])
    if not outputs.isfinite().all():
        raise InputError(
            f"layer {index} of the parent gives activations that are not finite",
            remedy="check the parent's weights; distillation needs finite activations",
        )
    return LayerActivations(inputs=inputs, middle=middle, outputs=outputs)


def _run_job(
    job: _Job,
    config: ParentConfig,
    layer: ParentLayer,
    train: LayerActivations,
    held_out: LayerActivations,
    rotary: RotarySlice,
    settings: BldSettings,
    calibration_tokens: int,
) -> tuple[LibraryEntry, SubblockModule]:
    torch.manual_seed(job.layer)
    variant = parse_variant(job.subblock, job.variant)
    rows = max(1, calibration_tokens // train.inputs.shape[1])
    candidates = initial_candidates(
        variant, _calibration(job.subblock, config, layer, train, rotary, slice(0, rows))
    )
    made = []
    for method, tensors in candidates.items():
        student = subblock_from_tensors(
            variant, config, tensors, dtype=train.inputs.dtype, device=train.inputs.device
        )
        made.append((block_loss(student, job.subblock, layer, held_out, rotary), method, student))
    loss_initial, method, student = min(made, key=lambda entry: entry[0])
    initial = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    train_student(student, job.subblock, layer, train, rotary, settings)
    loss_trained = block_loss(student, job.subblock, layer, held_out, rotary)
    if not loss_trained < loss_initial:
        student.load_state_dict(initial)
        loss_trained = loss_initial
    entry = LibraryEntry(
        first_layer=job.key[0],
        last_layer=job.key[1],
        attention=job.key[2],
        ffn=job.key[3],
        initialised_by=method,
        tokens=settings.tokens,
        loss_initial=loss_initial,
        loss_trained=loss_trained,
        sha256="",
    )
    return entry, student


@torch.no_grad()
def _calibration(
    subblock: Subblock,
    config: ParentConfig,
    layer: ParentLayer,
    seen: LayerActivations,
    rotary: RotarySlice,
    rows: slice,
) -> Calibration:
    attention = subblock == "attention"
    module = layer.attention if attention else layer.ffn
    inputs = (seen.inputs if attention else seen.middle)[rows]
    outputs = (seen.middle if attention else seen.outputs)[rows]
    return Calibration(
        config=config,
        subblock=subblock,
        module=module,
        normed_TD=module.norm(inputs).flatten(0, 1),
        output_TD=(outputs - inputs).flatten(0, 1),
    )
