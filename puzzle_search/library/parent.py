"""The parent one layer at a time: its weights, and what it makes of hidden states."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from puzzle_search.arch import ParentConfig, Subblock, parse_variant
from puzzle_search.checkpoint import CheckpointReader, subblock_from_tensors
from puzzle_search.checkpoint.names import EMBEDDING
from puzzle_search.errors import InputError
from puzzle_search.library.states import HiddenStates, LayerActivations, StatesWriter
from puzzle_search.model import Rotary, SubblockModule
from puzzle_search.model.memory import gpu_memory_reported
from puzzle_search.model.rope import RotarySlice
from puzzle_search.model.subblocks.base import scaled


@dataclass(frozen=True, kw_only=True)
class ParentLayer:
    """The two subblocks of a parent layer, frozen."""

    attention: SubblockModule
    ffn: SubblockModule


@dataclass(frozen=True, kw_only=True)
class Parent:
    """A parent on disk, read where it is needed.

    Attributes:
        config: its shape.
        reader: its checkpoint.
        dtype: that its matrices are multiplied in; hidden states are fp32.
        device: where.
    """

    config: ParentConfig
    reader: CheckpointReader
    dtype: torch.dtype
    device: torch.device

    def layer(self, index: int) -> ParentLayer:
        """Read one layer."""
        return ParentLayer(
            attention=self._subblock("attention", index),
            ffn=self._subblock("ffn", index),
        )

    def _subblock(self, subblock: Subblock, index: int) -> SubblockModule:
        variant = parse_variant(subblock, self.config.own(subblock, index))
        tensors = self.reader.subblock(subblock, index, variant, self.config)
        return subblock_from_tensors(
            variant, self.config, tensors, dtype=self.dtype, device=self.device
        )

    def rotary(self, length: int) -> RotarySlice:
        """Angles of the first ``length`` positions, in layers that rotate."""
        return Rotary(self.config).slice(
            0, length, torch.empty(0, dtype=self.dtype, device=self.device)
        )


class ParentPass:
    """The parent's hidden states on several sets of tokens, layer after layer.

    Args:
        parent: read once, layer by layer.
        ids: (blocks, length) tokens of each set.
        rows: blocks that pass through at once.
        folder: where hidden states are written; None keeps them in memory.
    """

    def __init__(
        self, parent: Parent, ids: Sequence[torch.Tensor], rows: int, folder: Path | None
    ) -> None:
        self._parent, self._rows, self._folder = parent, rows, folder
        self._rotary = parent.rotary(ids[0].shape[1])
        self._layer = 0
        shape = (parent.config.vocab_size, parent.config.hidden_size)
        table = parent.reader.tensor(EMBEDDING, shape)
        self._before = [self._embed(tokens, table, number) for number, tokens in enumerate(ids)]

    def _embed(self, ids: torch.Tensor, table: torch.Tensor, number: int) -> HiddenStates:
        shape = (*ids.shape, table.shape[1])
        with self._writer(shape, f"before_000_{number}") as writer:
            for part in ids.split(self._rows):
                rows = table[part].float()
                writer.append(scaled(rows, self._parent.config.scales.embedding))
            return writer.finish()

    def _writer(self, shape: tuple[int, ...], name: str) -> StatesWriter:
        blocks, length, hidden = shape
        file = None if self._folder is None else self._folder / name
        return StatesWriter((blocks, length, hidden), torch.float32, file)

    @torch.no_grad()
    def next_layer(self) -> list[LayerActivations]:
        """Pass through the next layer; what it saw and gave, by set of tokens.

        Raises:
            InputError: the layer gives activations that are not finite, or the GPU's memory ran
                out.
        """
        with gpu_memory_reported(f"layer {self._layer} of the parent"):
            layer = self._parent.layer(self._layer)
            seen = [self._pass(layer, inputs, number) for number, inputs in enumerate(self._before)]
        self._before = [activations.outputs for activations in seen]
        self._layer += 1
        return seen

    def _pass(self, layer: ParentLayer, inputs: HiddenStates, number: int) -> LayerActivations:
        rotary = self._rotary.of_layer(self._layer, self._parent.config)
        with (
            self._writer(inputs.shape, f"middle_{self._layer:03d}_{number}") as middles,
            self._writer(inputs.shape, f"before_{self._layer + 1:03d}_{number}") as outputs,
        ):
            for rows in inputs.chunks(self._rows):
                hidden = inputs.rows(rows, self._parent.device)
                middle = layer.attention(hidden, rotary, None)
                output = layer.ffn(middle, rotary, None)
                if not output.isfinite().all():
                    raise InputError(
                        f"layer {self._layer} of the parent gives activations that are not finite",
                        remedy="check the parent's weights; distillation needs finite activations",
                    )
                middles.append(middle)
                outputs.append(output)
            return LayerActivations(
                inputs=inputs, middle=middles.finish(), outputs=outputs.finish()
            )
