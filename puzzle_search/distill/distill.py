"""Global knowledge distillation (GKD) of a whole child (Puzzle, section 5)."""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Callable
from pathlib import Path

import torch

from puzzle_search import __version__
from puzzle_search.arch import ArchitectureSpec
from puzzle_search.checkpoint import (
    CheckpointReader,
    check_replaceable,
    decoder_tensors,
    load_decoder,
    open_safetensors,
    write_child,
)
from puzzle_search.data import TokenBlocks, TokenStream
from puzzle_search.distill.losses import Distiller
from puzzle_search.distill.run_folder import Best, RunFolder
from puzzle_search.distill.settings import DistillSettings
from puzzle_search.distill.trackers import tracking
from puzzle_search.distill.trainer import Trainer
from puzzle_search.distill.world import World, join_world
from puzzle_search.errors import InputError
from puzzle_search.files import check_own_folder, read_json, value_hash
from puzzle_search.model.dtypes import torch_dtype
from puzzle_search.progress import Progress
from puzzle_search.runtime import keep_freed_memory

RECORD = "distillation.json"
FORMAT = "puzzle-search.distillation/1"


def distill(
    parent: str | Path,
    child: str | Path,
    out: str | Path,
    stream: TokenStream,
    held_out: TokenBlocks,
    settings: DistillSettings,
    *,
    out_dtype: str = "bf16",
    device: str = "cpu",
    track: str | None = None,
    progress: Progress | None = None,
) -> Path:
    """Train the whole child to compute what its parent computes, and write it.

    The metrics and the newest checkpoint stand in ``<out>.run``; a run that was killed goes on
    from there. The weights written are those of the least held-out loss: where no step lowers it,
    the child stays as it was (`kept_state`). Under ``torchrun`` the processes share the weights and
    each batch (FSDP2).

    Args:
        parent: checkpoint folder of the parent.
        child: checkpoint folder of the child to begin from.
        out: folder of the distilled child; an existing child there is replaced.
        stream: training tokens, at its beginning.
        held_out: tokens on which losses are reported.
        settings: how to train.
        out_dtype: of the written weights, ``bf16`` or ``fp32``.
        device: ``cpu`` or ``cuda``.
        track: ``tensorboard``, ``wandb`` or ``trackio``, beside ``metrics.jsonl``.
        progress: shows how far it is.

    Raises:
        InputError: child and parent do not belong together, a loss is not finite, memory ran out,
            ``out`` is no child, or ``<out>.run`` holds a run that was made from something else or
            is in use.
        MissingDependencyError: the tracker is not installed.
    """
    target = Path(out)
    check_replaceable(target)
    torch_dtype(out_dtype)
    spec = ArchitectureSpec.from_file(Path(child) / "architecture.yaml")
    steps = settings.steps(stream.length)
    made_from = {
        "settings": settings.decisive(),
        "parent_sha256": CheckpointReader(parent).sha256,
        "child_sha256": CheckpointReader(child).sha256,
        "data_sha256": stream.sha256,
        "held_out_sha256": value_hash(held_out.ids.tolist()),
    }
    run = RunFolder(target.with_name(f"{target.name}.run"))
    check_own_folder(run.folder, ("journal.jsonl", "metrics.jsonl"), "the run of a distillation")
    with join_world(device) as world, run.held() if world.first else contextlib.nullcontext():
        if world.first:
            run.resume(made_from)
        world.wait()
        keep_freed_memory(world.device)
        distiller = Distiller(
            load_decoder(parent, dtype=torch_dtype(settings.dtype)),
            load_decoder(child),
            recompute=settings.activation_checkpointing,
        )
        trainer = Trainer(distiller, settings, world)
        if distiller.child.spec != spec:
            raise InputError(
                f"{child}: config.json and architecture.yaml describe different children",
                remedy="build the child again",
            )
        shown = (progress or Progress("distill")).over(steps, done=run.steps_done)
        name = track if world.first else None
        with (
            shown if world.first else contextlib.nullcontext(_silent) as advance,
            tracking(name, run.folder, made_from, steps_done=run.steps_done) as also_log,
        ):

            def log(entry: dict[str, float]) -> None:
                if world.first:
                    run.log(entry)
                    also_log(entry)

            best = _train(trainer, run, stream, held_out, settings, world, log, advance)
        weights = trainer.weights()
        if world.first:
            if best.step != steps:
                weights = _weights_of(best, run, child)
            record = {
                "format": FORMAT,
                "package_version": __version__,
                "evidence": "measured",
                "made_from": made_from,
                "tokens": steps * settings.step_tokens(stream.length),
                "steps": steps,
                "kept_step": best.step,
                "held_out": run.held_out(best),
            }
            write_child(
                target,
                distiller.child.config,
                spec,
                decoder_tensors(weights, distiller.child.config),
                dtype=out_dtype,
                tokenizer_from=child,
                records={RECORD: json.dumps(record, indent=1)},
            )
        world.wait()
    return target


def _train(
    trainer: Trainer,
    run: RunFolder,
    stream: TokenStream,
    held_out: TokenBlocks,
    settings: DistillSettings,
    world: World,
    log: Callable[[dict[str, float]], None],
    advance: Callable[[str], None],
) -> Best:
    """Train from the newest checkpoint, or from the beginning, to the end; the best state."""
    length, newest, best = stream.length, run.newest(), run.best()
    steps, step_tokens = settings.steps(length), settings.step_tokens(length)
    if newest is not None:
        trainer.load(newest.folder, newest.step)
        stream.seek(newest.position)
    else:
        judged = trainer.held_out(held_out)
        best = Best(step=0, loss=judged["held_out_loss"])
        log({"step": 0, "tokens": 0} | judged)
    for step in range(1 + (newest.step if newest is not None else 0), steps + 1):
        started, learning_rate = time.perf_counter(), settings.learning_rate_at(step - 1, steps)
        losses = trainer.step(stream.take(settings.blocks(length)), learning_rate, number=step)
        tokens_per_s = step_tokens / (time.perf_counter() - started)
        entry: dict[str, float] = {"step": step, "tokens": step * step_tokens, **losses}
        entry |= {"learning_rate": learning_rate, "tokens_per_s": tokens_per_s}
        last = step == steps
        if last or step % settings.held_out_every == 0:
            entry |= trainer.held_out(held_out)
        log(entry)
        if entry.get("held_out_loss", math.inf) < (best.loss if best else math.inf):
            best = Best(step=step, loss=entry["held_out_loss"])
            if not last:
                _save_best(trainer, run, best, world)
        if last or step % settings.checkpoint_every == 0:
            _save(trainer, run, step, stream, world)
        advance(f"loss {losses['loss']:.4f}, {tokens_per_s:,.0f} tokens/s")
    assert best is not None
    return best


def kept_state(folder: str | Path) -> str | None:
    """What to tell of a distilled child whose last state was not its best, None of any other."""
    file = Path(folder) / RECORD
    record = read_json(file, remedy="distil the child again")
    kept, steps, held_out = record["kept_step"], record["steps"], record["held_out"]
    if kept == steps:
        return None
    before, after, last = (held_out[w]["held_out_loss"] for w in ("before", "after", "last"))
    if kept == 0:
        return (
            f"distillation raised the held-out loss from {before:.4g} to {last:.4g}: the child is "
            "kept as it was before; lower the learning rate, or give more tokens"
        )
    return (
        f"the held-out loss rose from {after:.4g} at step {kept} to {last:.4g} at the last, {steps}"
        f": the state of step {kept} is kept; lower the learning rate, or give fewer tokens"
    )


def _weights_of(best: Best, run: RunFolder, child: str | Path) -> dict[str, torch.Tensor]:
    """Of the best state, which may be the child before the first step."""
    if best.step == 0:
        return dict(load_decoder(child).named_parameters())
    file = open_safetensors(run.best_weights(best))
    return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)


def _save_best(trainer: Trainer, run: RunFolder, best: Best, world: World) -> None:
    if world.first:
        with run.best_state(best) as folder:
            trainer.save_weights(folder)
    else:
        trainer.save_weights(None)


def _silent(unit: str) -> None:
    """Progress of a process that shows none."""


def _save(trainer: Trainer, run: RunFolder, step: int, stream: TokenStream, world: World) -> None:
    if world.first:
        with run.checkpoint(step, stream.position) as folder:
            trainer.save(folder)
    else:
        trainer.save(None)
