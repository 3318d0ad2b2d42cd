"""The child in training: a step, the held-out losses, and its state on disk."""

from __future__ import annotations

import math
from collections.abc import Collection
from pathlib import Path

import torch
from torch import nn

from puzzle_search.checkpoint import open_safetensors, save_tensors
from puzzle_search.data import TokenBlocks
from puzzle_search.distill.losses import Distiller, term_counts
from puzzle_search.distill.run_folder import WEIGHTS
from puzzle_search.distill.settings import LOSSES, DistillSettings
from puzzle_search.distill.world import World, put
from puzzle_search.errors import InputError
from puzzle_search.model.memory import gpu_memory_reported

_MOMENTS = ("exp_avg", "exp_avg_sq")
_WITH_LESS_MEMORY = (
    "run again with fewer --micro-batch-tokens or with --activation-checkpointing (the run goes on "
    "from its checkpoint), with --dtype bf16, or on more GPUs"
)


class Trainer:
    """A distiller with its optimizer (AdamW), spread over the world.

    Args:
        distiller: parent and child.
        settings: how to train.
        world: the processes.
    """

    def __init__(self, distiller: Distiller, settings: DistillSettings, world: World) -> None:
        world.shard(distiller)
        self._distiller = distiller
        self._settings = settings
        self._world = world
        self._parameters = dict(distiller.child.named_parameters())
        self._optimizer = torch.optim.AdamW(
            self._parameters.values(), betas=(0.9, 0.95), weight_decay=0.0
        )

    def step(self, blocks: TokenBlocks, learning_rate: float, *, number: int) -> dict[str, float]:
        """Train on one batch of all processes; its mean losses and the norm of the gradient.

        Raises:
            InputError: the loss or the gradient is not finite, and the weights are as before; or
                the GPU's memory ran out.
        """
        with gpu_memory_reported(f"step {number}", _WITH_LESS_MEMORY):
            losses = self._means(blocks, self._settings.losses, train=True)
        losses = {"loss": sum(losses.values())} | losses
        norm = nn.utils.clip_grad_norm_(self._parameters.values(), self._settings.max_grad_norm)
        whole = getattr(norm, "full_tensor", lambda: norm)()
        found = losses | {"grad_norm": float(whole)}
        wrong = [name for name, value in found.items() if not math.isfinite(value)]
        if wrong:
            raise InputError(
                f"step {number}: {', '.join(wrong)} not finite; the last checkpoint is kept",
                remedy="lower the learning rate and begin anew in another folder, or check the "
                "weights of parent and child",
            )
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return found

    @torch.no_grad()
    def held_out(self, blocks: TokenBlocks) -> dict[str, float]:
        """Mean of every loss, of those that are not trained on too, over held-out tokens."""
        losses = self._means(blocks, LOSSES, train=False)
        trained = sum(losses[term] for term in self._settings.losses)
        return {"held_out_loss": trained} | {
            f"held_out_{term}": value for term, value in losses.items()
        }

    def _means(
        self, blocks: TokenBlocks, terms: Collection[str], *, train: bool
    ) -> dict[str, float]:
        """Mean losses over the blocks of all processes; with gradients where ``train``."""
        world, counts = self._world, term_counts(blocks, terms)
        weights = {term: 1 / count for term, count in counts.items()}
        length = blocks.ids.shape[1]
        share = -(-len(blocks.ids) // world.size)
        tokens = self._settings.micro_batch_tokens
        rows = share if tokens is None else max(1, min(share, tokens // length))
        pieces = blocks.split(rows)
        totals = torch.zeros(len(counts), dtype=torch.float64)
        # All processes pass equally often, since each pass gathers weights from all of them: where
        # pieces run out, one passes again and counts for nothing.
        for first in range(0, len(pieces), world.size):
            index = first + world.rank
            piece, counted = pieces[index % len(pieces)], float(index < len(pieces))
            with torch.autocast(
                world.device.type, torch.bfloat16, enabled=self._settings.dtype == "bf16"
            ):
                loss, means = self._distiller(
                    piece.ids.to(world.device), piece.document_starts.to(world.device), weights
                )
            if train:
                # FSDP takes the mean of the gradients of all processes; their sum is wanted.
                (loss * (counted * world.size)).backward()
            totals += torch.stack(list(means.values())).double().cpu() * counted
        totals = world.total(totals.to(world.device)).cpu()
        return dict(zip(counts, totals.tolist(), strict=True))

    def save(self, folder: Path | None) -> None:
        """Write weights and optimizer state as safetensors.

        Every process takes part, since each holds a part; the first one names a folder.
        """
        self.save_weights(folder)
        state = self._optimizer.state
        for moment in _MOMENTS:
            kept = {n: state[p][moment] for n, p in self._parameters.items() if p in state}
            gathered = self._world.gathered(kept)
            if folder is not None:
                save_tensors(gathered, folder / f"{moment}.safetensors")

    @torch.no_grad()
    def load(self, folder: Path, steps: int) -> None:
        """Take up the state that was saved after so many steps.

        Raises:
            InputError: a file is missing or damaged.
        """
        weights = open_safetensors(folder / WEIGHTS)
        moments = {name: open_safetensors(folder / f"{name}.safetensors") for name in _MOMENTS}
        moved = set(moments[_MOMENTS[0]].keys())
        for name, parameter in self._parameters.items():
            parameter.copy_(put(weights.get_tensor(name), parameter))
            if name in moved:
                self._optimizer.state[parameter] = {
                    "step": torch.tensor(float(steps)),
                    **{m: put(file.get_tensor(name), parameter) for m, file in moments.items()},
                }

    def save_weights(self, folder: Path | None) -> None:
        """Write the weights alone; every process takes part, the first one names a folder."""
        weights = self.weights()
        if folder is not None:
            save_tensors(weights, folder / WEIGHTS)

    def weights(self) -> dict[str, torch.Tensor]:
        """The child's weights, fp32, by parameter name; none but in the first process."""
        return self._world.gathered(self._parameters)
