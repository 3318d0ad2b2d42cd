"""Blockwise local distillation (BLD): students of a block, their loss, their steps.

A student holds the trained subblocks of a block: one of them beside the parent's frozen other
one (decoupled), or both (coupled, and blocks that stand for a run of layers). Puzzle, section 3.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from puzzle_search.arch import Subblock
from puzzle_search.checkpoint.block_library import BlockTensors
from puzzle_search.errors import InputError
from puzzle_search.library.parent import ParentLayer
from puzzle_search.library.states import LayerActivations
from puzzle_search.model import SubblockModule
from puzzle_search.model.rope import RotarySlice
from puzzle_search.model.schedule import LARGEST_LEARNING_RATE, warmup_cosine
from puzzle_search.model.subblocks.linear import LinearSubblock

Student = dict[Subblock, SubblockModule]


@dataclass(frozen=True, kw_only=True)
class BldSettings:
    """How variants are trained.

    Attributes:
        tokens: training tokens a variant sees, in whole steps; 0 keeps the initialisation.
        batch_tokens: tokens of one step, less where ``tokens`` or the data are fewer.
        learning_rate: peak; it warms up over the first 5% and falls to zero along a cosine.
        linear_learning_rate: the same for linear variants, which begin at their least-squares
            optimum and are thrown off it by larger steps.
        max_grad_norm: gradients of a student are clipped to this norm.
        checks: how often, at even distances, a student's held-out loss is looked at.
        patience: a student that did not improve at this many checks in a row stops.

    Raises:
        InputError: a learning rate cannot be used.
    """

    tokens: int
    batch_tokens: int = 1024
    learning_rate: float = 2e-3
    linear_learning_rate: float = 2e-4
    max_grad_norm: float = 1.0
    checks: int = 10
    patience: int = 4

    def __post_init__(self) -> None:
        for name in ("learning_rate", "linear_learning_rate"):
            if not 0 < getattr(self, name) <= LARGEST_LEARNING_RATE:
                raise InputError(
                    f"{name} {getattr(self, name)} is not above 0 and at most "
                    f"{LARGEST_LEARNING_RATE:g}",
                    remedy=f"give another {name}",
                )


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Some blocks of text at one parent layer, (B, L, D) each.

    Attributes:
        inputs: hidden states before the first layer that a student stands for.
        middle: after that layer's attention.
        outputs: after the last layer that it stands for: the target.
    """

    inputs: torch.Tensor
    middle: torch.Tensor
    outputs: torch.Tensor

    @classmethod
    def read(cls, seen: LayerActivations, rows: slice, device: torch.device) -> Batch:
        """These blocks of what a layer saw and gave."""
        return cls(
            inputs=seen.inputs.rows(rows, device),
            middle=seen.middle.rows(rows, device),
            outputs=seen.outputs.rows(rows, device),
        )


@dataclass(frozen=True, kw_only=True)
class CurvePoint:
    """A student's losses after some steps; the training loss is the mean since the last check."""

    step: int
    tokens: int
    train_loss: float | None
    held_out_loss: float


def block_output(
    student: Student, parent: ParentLayer, batch: Batch, rotary: RotarySlice
) -> torch.Tensor:
    """Output of the block with the student's subblocks, and the parent's where it has none."""
    if "attention" in student:
        middle = student["attention"](batch.inputs, rotary, None)
    else:
        middle = batch.middle
    hidden: torch.Tensor = student.get("ffn", parent.ffn)(middle, rotary, None)
    return hidden


def normalised_error(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """MSE(target, output) / MSE(target, 0), in fp32."""
    output, target = output.float(), target.float()
    return (output - target).square().mean() / target.square().mean()


@torch.no_grad()
def block_error(
    student: Student,
    parent: ParentLayer,
    seen: LayerActivations,
    rotary: RotarySlice,
    *,
    chunk: int,
    blocks: int | None = None,
) -> float:
    """Normalised error over the first ``blocks`` of text, or all; ``chunk`` of them at a time."""
    device, error, power = rotary.cos_LE.device, 0.0, 0.0
    blocks = blocks or seen.inputs.shape[0]
    for start in range(0, blocks, chunk):
        rows = slice(start, min(start + chunk, blocks))
        batch = Batch.read(seen, rows, device)
        target = batch.outputs.float()
        difference = block_output(student, parent, batch, rotary).float() - target
        error += float(difference.square().sum(dtype=torch.float64))
        power += float(target.square().sum(dtype=torch.float64))
    return error / power


class Training:
    """A student, its optimizer, and the best weights that a check has seen.

    Weights are trained in fp32: a student that computes in bf16 has fp32 masters beside it.

    Args:
        student: trained in place; has weights.
        settings: how to train.
        steps: steps that the schedule spans.
        held_out_loss: of the student as it is.
    """

    def __init__(
        self, student: Student, settings: BldSettings, steps: int, held_out_loss: float
    ) -> None:
        self.student = student
        self.curve = [CurvePoint(step=0, tokens=0, train_loss=None, held_out_loss=held_out_loss)]
        self.stopped = False
        self._settings, self._steps = settings, steps
        self._best_loss, self._best = held_out_loss, self.tensors()
        self._without_improvement = 0
        self._recent: list[torch.Tensor] = []
        self._weights: list[torch.Tensor] = []
        self._masters: list[torch.Tensor] = []
        groups = []
        for module in student.values():
            weights = list(module.requires_grad_(True).parameters())
            masters = [
                weight if weight.dtype == torch.float32 else weight.detach().float()
                for weight in weights
            ]
            linear = isinstance(module, LinearSubblock)
            peak = settings.linear_learning_rate if linear else settings.learning_rate
            if weights:
                groups.append({"params": masters, "lr": peak, "peak": peak})
            self._weights += weights
            self._masters += masters
        self._optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), weight_decay=0.0, fused=True)

    def tensors(self) -> BlockTensors:
        """Copies of the weights by local name."""
        return {
            part: {name: value.detach().clone() for name, value in module.state_dict().items()}
            for part, module in self.student.items()
        }

    def step(self, step: int, parent: ParentLayer, batch: Batch, rotary: RotarySlice) -> None:
        """Take one step towards the parent's output."""
        for group in self._optimizer.param_groups:
            group["lr"] = group["peak"] * warmup_cosine(step, self._steps)
        loss = normalised_error(block_output(self.student, parent, batch, rotary), batch.outputs)
        loss.backward()
        for master, weight in zip(self._masters, self._weights, strict=True):
            if master is not weight and weight.grad is not None:
                master.grad = weight.grad.float()
                weight.grad = None
        torch.nn.utils.clip_grad_norm_(self._masters, self._settings.max_grad_norm)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            for master, weight in zip(self._masters, self._weights, strict=True):
                if master is not weight:
                    weight.copy_(master)
        self._recent.append(loss.detach())

    def check(self, step: int, tokens: int, held_out_loss: float) -> None:
        """Note the held-out loss after ``step`` steps; keep the weights if they are the best."""
        train_loss = float(torch.stack(self._recent).mean())
        self._recent = []
        self.curve.append(
            CurvePoint(step=step, tokens=tokens, train_loss=train_loss, held_out_loss=held_out_loss)
        )
        if held_out_loss < self._best_loss:
            self._best_loss, self._best = held_out_loss, self.tensors()
            self._without_improvement = 0
        else:
            self._without_improvement += 1
            self.stopped = self._without_improvement >= self._settings.patience

    def finish(self) -> None:
        """Put the best weights into the student."""
        load_tensors(self.student, self._best)
        for module in self.student.values():
            module.requires_grad_(False)


def load_tensors(student: Student, tensors: BlockTensors) -> None:
    """Put weights into a student."""
    for part, module in student.items():
        module.load_state_dict(tensors[part])
