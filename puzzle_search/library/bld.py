"""Blockwise local distillation (BLD) of one variant in one layer (Puzzle, section 3)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from puzzle_search.arch import Subblock
from puzzle_search.model import SubblockModule
from puzzle_search.model.rope import RotarySlice
from puzzle_search.model.subblocks.linear import LinearSubblock


@dataclass(frozen=True, kw_only=True)
class BldSettings:
    """How variants are trained.

    Attributes:
        tokens: training tokens a variant sees, in whole steps; 0 keeps the initialisation.
        batch_tokens: tokens of one step, less where ``tokens`` or the data are fewer.
        learning_rate: peak; it warms up over the first 5% and falls to zero along a cosine.
        linear_learning_rate: the same for linear variants, which begin at their least-squares
            optimum and are thrown off it by larger steps.
        max_grad_norm: gradients are clipped to this norm.
    """

    tokens: int
    batch_tokens: int = 1024
    learning_rate: float = 2e-3
    linear_learning_rate: float = 2e-4
    max_grad_norm: float = 1.0


@dataclass(frozen=True, kw_only=True)
class LayerActivations:
    """What one parent layer saw and gave, all (blocks, length, hidden).

    Attributes:
        inputs: hidden states before the layer.
        middle: after its attention subblock.
        outputs: after its FFN subblock.
    """

    inputs: torch.Tensor
    middle: torch.Tensor
    outputs: torch.Tensor


@dataclass(frozen=True, kw_only=True)
class ParentLayer:
    """The two subblocks of a parent layer, frozen."""

    attention: SubblockModule
    ffn: SubblockModule


def block_output(
    student: SubblockModule,
    subblock: Subblock,
    layer: ParentLayer,
    activations: LayerActivations,
    rows: slice,
    rotary: RotarySlice,
) -> torch.Tensor:
    """Output of the layer with one subblock replaced, the parent's other one in place."""
    if subblock == "ffn":
        hidden: torch.Tensor = student(activations.middle[rows], rotary, None)
        return hidden
    middle = student(activations.inputs[rows], rotary, None)
    hidden = layer.ffn(middle, rotary, None)
    return hidden


def normalised_error(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """MSE(target, output) / MSE(target, 0)."""
    return (output - target).square().mean() / target.square().mean()


@torch.no_grad()
def block_loss(
    student: SubblockModule,
    subblock: Subblock,
    layer: ParentLayer,
    held_out: LayerActivations,
    rotary: RotarySlice,
) -> float:
    """Normalised error over all held-out tokens."""
    output = block_output(student, subblock, layer, held_out, slice(None), rotary)
    return float(normalised_error(output, held_out.outputs))


def train_student(
    student: SubblockModule,
    subblock: Subblock,
    layer: ParentLayer,
    activations: LayerActivations,
    rotary: RotarySlice,
    settings: BldSettings,
) -> None:
    """Train a student in place to give the parent layer's output."""
    linear = isinstance(student, LinearSubblock)
    peak = settings.linear_learning_rate if linear else settings.learning_rate
    blocks, length = activations.inputs.shape[:2]
    rows = max(1, min(settings.batch_tokens // length, settings.tokens // length, blocks))
    steps = settings.tokens // (rows * length)
    starts = range(0, blocks - rows + 1, rows)
    student.requires_grad_(True)
    optimizer = torch.optim.AdamW(
        student.parameters(), lr=peak, betas=(0.9, 0.95), weight_decay=0.0
    )
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = peak * _schedule(step, steps)
        start = starts[step % len(starts)]
        batch = slice(start, start + rows)
        output = block_output(student, subblock, layer, activations, batch, rotary)
        loss = normalised_error(output, activations.outputs[batch])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), settings.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    student.requires_grad_(False)


def _schedule(step: int, steps: int) -> float:
    warmup = max(1, steps // 20)
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))
