"""The weights of a parent or child as they are served."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Self

import torch
import torch.nn.functional as F
from torch import nn

from puzzle_search.arch import ArchitectureSpec, BlockChoice, ParentConfig, Subblock
from puzzle_search.checkpoint import CheckpointReader
from puzzle_search.checkpoint.child import read_model_config
from puzzle_search.checkpoint.names import EMBEDDING, FINAL_NORM, HEAD
from puzzle_search.model import Rotary
from puzzle_search.model.subblocks.base import scaled
from puzzle_search.runtime.cache import LayerSlots, SlotCache
from puzzle_search.runtime.fuse import add_norm
from puzzle_search.runtime.precision import Precision
from puzzle_search.runtime.step import Step
from puzzle_search.runtime.subblocks import make_serving_subblock

_SUBBLOCKS: tuple[Subblock, Subblock] = ("attention", "ffn")
_RANDOM_STD = 0.02


class ServingBlock(nn.Module):
    """The subblocks of one block that are there."""

    def __init__(self, choice: BlockChoice, config: ParentConfig, precision: Precision) -> None:
        super().__init__()
        self.attention = make_serving_subblock(choice.attention_variant, config, precision)
        self.ffn = make_serving_subblock(choice.ffn_variant, config, precision)

    def forward(
        self,
        residual_ND: torch.Tensor,
        delta_ND: torch.Tensor | None,
        step: Step,
        cache: LayerSlots | None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Residual stream, and what is still to be added to it."""
        if self.attention is not None:
            residual_ND, delta_ND = self.attention(residual_ND, delta_ND, step, cache)
        if self.ffn is not None:
            residual_ND, delta_ND = self.ffn(residual_ND, delta_ND, step, None)
        return residual_ND, delta_ND


class ServingDecoder(nn.Module):
    """Embedding, blocks of any variants, final norm and output head, in a serving precision.

    Made without weights on torch's default device; use `random` or `from_checkpoint`.
    """

    def __init__(self, config: ParentConfig, spec: ArchitectureSpec, precision: Precision) -> None:
        super().__init__()
        spec.check_fits(config)
        self.config = config
        self.spec = spec
        self.precision = precision
        table = torch.empty(config.vocab_size, config.hidden_size, dtype=precision.activation)
        self.embedding = nn.Parameter(table, requires_grad=False)
        self.blocks = nn.ModuleList(ServingBlock(c, config, precision) for c in spec.blocks)
        ones = torch.ones(config.hidden_size, dtype=precision.activation)
        self.norm_weight = nn.Parameter(ones, requires_grad=False)
        self.head = self.embedding
        if not config.tie_embeddings:
            self.head = nn.Parameter(torch.empty_like(table), requires_grad=False)
        self._rotary = Rotary(config)

    @classmethod
    def random(
        cls,
        config: ParentConfig,
        spec: ArchitectureSpec,
        precision: Precision,
        device: torch.device,
    ) -> Self:
        """A decoder with random weights: to measure, not to talk to."""
        with device:
            decoder = cls(config, spec, precision)
        for table in {decoder.embedding, decoder.head}:
            nn.init.normal_(table, std=_RANDOM_STD)
        for block in decoder.blocks:
            for subblock in _SUBBLOCKS:
                module = getattr(block, subblock)
                if module is not None:
                    module.randomise()
        return decoder

    @classmethod
    def from_checkpoint(
        cls, folder: str | Path, precision: Precision, device: torch.device
    ) -> Self:
        """Load a parent or a child, one subblock in memory at a time.

        Raises:
            InputError: the checkpoint is incomplete, damaged, or not of a supported kind.
        """
        config, spec = read_model_config(folder)
        reader = CheckpointReader(folder)
        with device:
            decoder = cls(config, spec, precision)
        for index, choice in enumerate(spec.blocks):
            for subblock in _SUBBLOCKS:
                module = getattr(decoder.blocks[index], subblock)
                if module is not None:
                    variant = (
                        choice.attention_variant if subblock == "attention" else choice.ffn_variant
                    )
                    module.load(reader.subblock(subblock, index, variant, config))
        decoder._load_outside(reader.outside(config))
        return decoder

    def _load_outside(self, tensors: Mapping[str, torch.Tensor]) -> None:
        self.embedding.copy_(tensors[EMBEDDING])
        self.norm_weight.copy_(tensors[FINAL_NORM])
        if self.head is not self.embedding:
            self.head.copy_(tensors[HEAD])

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.embedding.device

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights, tied tables once, without the scales of FP8."""
        return sum({p.data_ptr(): p.nbytes for p in self.parameters()}.values())

    def new_cache(self, *, slots: int, max_length: int) -> SlotCache:
        """An empty KV cache."""
        return SlotCache(
            [choice.attention_variant for choice in self.spec.blocks],
            self.config,
            slots=slots,
            max_length=max_length,
            dtype=self.precision.kv,
            device=self.device,
        )

    def rotary_table(self, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and signed sines of the first positions, (length, E) each."""
        return self._rotary.slice(0, length, self.norm_weight)

    def hidden_states(
        self, ids_N: torch.Tensor, step: Step, cache: SlotCache
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Residual stream after all blocks, and what is still to be added to it, (N, D) each."""
        unrotated, scales = self.config.unrotated, self.config.scales
        residual_ND = scaled(F.embedding(ids_N, self.embedding), scales.embedding)
        delta_ND: torch.Tensor | None = None
        still = replace(step, rotary=step.rotary.still) if unrotated else step
        for choice, block, layer in zip(self.spec.blocks, self.blocks, cache.layers, strict=True):
            here = still if choice.layers[0] in unrotated else step
            residual_ND, delta_ND = block(residual_ND, delta_ND, here, layer)
        return residual_ND, delta_ND

    def logits(self, residual_ND: torch.Tensor, delta_ND: torch.Tensor | None) -> torch.Tensor:
        """Logits (N, vocabulary) of final hidden states."""
        eps, scales = self.config.rms_norm_eps, self.config.scales
        _, normed_ND = add_norm(residual_ND, delta_ND, self.norm_weight, eps, None, scales.residual)
        return scaled(F.linear(normed_ND, self.head), scales.logits)
