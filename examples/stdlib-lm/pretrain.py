"""Train a small Llama on text, resumable, within a number of steps or of seconds."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from muon import Muon
from transformers import LlamaForCausalLM

from puzzle_search.checkpoint import open_safetensors, save_tensors

_WARM_UP_STEPS = 100
_DECAY_FROM = 0.75
_EPOCHS = 100


@dataclass(frozen=True, kw_only=True)
class PretrainSettings:
    """How to train.

    Attributes:
        steps: of the whole training.
        max_seconds: of the whole training, all its runs together; it ends with whichever of the
            two is reached first.
        tokens_per_step: a multiple of the length of the blocks.
        muon_rate: peak learning rate of the matrices inside blocks.
        adamw_rate: of embeddings and norms.
        bf16: compute in bf16, with weights and optimizer state in fp32.
        compiled: with ``torch.compile``.
        save_every: steps between checkpoints and held-out figures.
    """

    steps: int
    max_seconds: float | None = None
    tokens_per_step: int = 4096
    muon_rate: float = 4e-3
    adamw_rate: float = 3e-3
    bf16: bool = False
    compiled: bool = True
    save_every: int = 250


@dataclass(frozen=True, kw_only=True)
class Pretrained:
    """How far a training came, all its runs together."""

    steps: int
    seconds: float


def rate_factor(step: int, done: float) -> float:
    """Warm-up, constant, linear to zero over the last quarter.

    Args:
        step: steps before this one.
        done: share of the training that is over, from 0 to 1.
    """
    if done >= _DECAY_FROM:
        return max(0.0, (1 - done) / (1 - _DECAY_FROM))
    return min(1.0, (step + 1) / _WARM_UP_STEPS)


@torch.no_grad()
def held_out(model: LlamaForCausalLM, blocks: torch.Tensor) -> tuple[float, float]:
    """Mean next-token loss (nats) and accuracy over (blocks, length + 1) tokens."""
    loss = correct = count = 0.0
    for batch in blocks.split(16):
        rows = batch.to(model.device)
        logits = model(rows[:, :-1], use_cache=False).logits.flatten(0, 1)
        target = rows[:, 1:].flatten()
        loss += F.cross_entropy(logits, target, reduction="sum").item()
        correct += (logits.argmax(-1) == target).sum().item()
        count += target.numel()
    return loss / count, correct / count


def pretrain(
    model: LlamaForCausalLM,
    train: torch.Tensor,
    validation: torch.Tensor,
    settings: PretrainSettings,
    checkpoint: Path,
    log: Callable[[dict[str, Any]], None],
) -> Pretrained:
    """Train a model where it lies; goes on from its checkpoint.

    Blocks are cut in half until the last quarter. The learning rate depends on the share that is
    done, so a resumed run may name another number of steps.

    Args:
        model: with new weights, on its device.
        train: (blocks, length + 1) tokens; passed in a new order each epoch.
        validation: (blocks, length + 1) tokens whose loss is logged.
        settings: how to train.
        checkpoint: safetensors file of weights and optimizer state.
        log: called with figures every 50 steps.
    """
    named, optimizers = dict(model.named_parameters()), _optimizers(model, settings)
    step, before = 0, 0.0
    if checkpoint.exists():
        step, before = _load(checkpoint, named, optimizers)
    device_type = model.device.type

    def loss_of(rows: torch.Tensor) -> torch.Tensor:
        with torch.autocast(device_type, torch.bfloat16, enabled=settings.bf16):
            logits = model(rows[:, :-1], use_cache=False).logits
        return F.cross_entropy(logits.float().flatten(0, 1), rows[:, 1:].flatten())

    train_loss = torch.compile(loss_of) if settings.compiled else loss_of
    generator = torch.Generator().manual_seed(1)
    order = torch.cat([torch.randperm(len(train), generator=generator) for _ in range(_EPOCHS)])
    length = train.shape[1] - 1
    batch = settings.tokens_per_step // length
    begun = time.perf_counter()

    def share_done() -> float:
        spent = before + time.perf_counter() - begun
        of_seconds = 0.0 if settings.max_seconds is None else spent / settings.max_seconds
        return max(step / settings.steps, of_seconds)

    done = share_done()
    while done < 1:
        rows = train[order[step * batch : (step + 1) * batch]].to(model.device)
        if done < _DECAY_FROM:
            half = length // 2
            rows = torch.cat([rows[:, : half + 1], rows[:, half:]])
        loss = train_loss(rows)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(named.values(), 1.0)
        for optimizer, peak in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = peak * rate_factor(step, done)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        step += 1
        done, seconds = share_done(), before + time.perf_counter() - begun
        saved = done >= 1 or step % settings.save_every == 0
        if saved or step % 50 == 0:
            row = {"step": step, "tokens": step * settings.tokens_per_step}
            row |= {"loss": round(loss.item(), 4), "seconds": round(seconds)}
            if saved:
                held_loss, accuracy = held_out(model, validation)
                row |= {"validation_loss": round(held_loss, 4), "accuracy": round(accuracy, 4)}
            log(row)
        if saved:
            _save(checkpoint, named, optimizers, step, seconds)
    return Pretrained(steps=step, seconds=before + time.perf_counter() - begun)


_Optimizers = list[tuple[torch.optim.Optimizer, float]]


def _optimizers(model: LlamaForCausalLM, settings: PretrainSettings) -> _Optimizers:
    """Muon for the matrices inside the blocks, AdamW for embeddings and norms; with peak rates."""
    blocks = [p for p in model.model.layers.parameters() if p.ndim == 2]
    inside = {id(p) for p in blocks}
    rest = [p for p in model.parameters() if id(p) not in inside]
    adamw = torch.optim.AdamW(rest, betas=(0.9, 0.95), weight_decay=0.0)
    muon = Muon(blocks, lr=settings.muon_rate)
    return [(muon, settings.muon_rate), (adamw, settings.adamw_rate)]


def _save(
    file: Path,
    named: dict[str, torch.nn.Parameter],
    optimizers: _Optimizers,
    step: int,
    seconds: float,
) -> None:
    tensors = {f"weights.{name}": parameter for name, parameter in named.items()}
    for optimizer, _ in optimizers:
        for name, parameter in named.items():
            kept = optimizer.state.get(parameter, {})
            tensors |= {f"{key}.{name}": value for key, value in kept.items()}
    save_tensors(tensors, file, {"steps": str(step), "seconds": str(seconds)})


@torch.no_grad()
def _load(
    file: Path, named: dict[str, torch.nn.Parameter], optimizers: _Optimizers
) -> tuple[int, float]:
    """Take up weights and optimizer state; steps and seconds before."""
    handle = open_safetensors(file)
    owner = {
        id(parameter): optimizer
        for optimizer, _ in optimizers
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    for key in sorted(handle.keys()):
        kind, name = key.split(".", 1)
        parameter, tensor = named[name], handle.get_tensor(key)
        if kind == "weights":
            parameter.copy_(tensor)
        else:
            # AdamW counts its steps on the CPU.
            where = "cpu" if kind == "step" else parameter.device
            owner[id(parameter)].state[parameter][kind] = tensor.to(where)
    metadata = handle.metadata()
    return int(metadata["steps"]), float(metadata["seconds"])
