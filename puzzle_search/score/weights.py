"""Weights of parent and library, read when they are needed, one subblock at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F

from puzzle_search.arch import (
    ParentConfig,
    Replacement,
    Subblock,
    canonical,
    parse_variant,
    shape_of,
)
from puzzle_search.checkpoint import CheckpointReader, outside_names, subblock_from_tensors
from puzzle_search.checkpoint.block_library import BlockLibrary, LibraryEntry
from puzzle_search.checkpoint.names import EMBEDDING, FINAL_NORM, HEAD
from puzzle_search.checkpoint.weights.rounding import rounded
from puzzle_search.model import SubblockModule
from puzzle_search.model.subblocks.base import scaled
from puzzle_search.score.vocabulary import Tiles

# Rows of the output head that are multiplied at once. Whatever the memory, so that scores are.
_TILE_ROWS = {"cpu": 4096, "cuda": 16384}


def tile_rows(device: torch.device) -> int:
    """Rows of the output head in one tile."""
    return _TILE_ROWS.get(device.type, _TILE_ROWS["cpu"])


@dataclass(frozen=True, kw_only=True)
class Sources:
    """Where weights are read; can be sent to another process.

    Attributes:
        parent: checkpoint folder.
        library: folder of the block library.
        entries: of the library, which need not be checked against the parent again.
        config: the parent's.
        device: torch device, by name.
        dtype: that matrices are multiplied in; hidden states are fp32.
    """

    parent: Path
    library: Path
    entries: Mapping[Replacement, LibraryEntry]
    config: ParentConfig
    device: str
    dtype: torch.dtype

    def shares_subblocks(self, block: Replacement) -> bool:
        """Whether a block's subblocks are those of others: one layer, not trained together."""
        first, last, attention, ffn = block
        shape = canonical((first, last, shape_of(attention), shape_of(ffn)), self.config)
        together = bool(shape[2] and shape[3]) and shape in self.entries
        return first == last and not together

    def open_parent(self) -> CheckpointReader:
        """A reader of its own: the pages that it maps are given back when it is dropped."""
        return CheckpointReader(self.parent)

    def open_library(self) -> BlockLibrary:
        """The library over a reader of its own."""
        library = BlockLibrary(self.library, self.config, self.open_parent())
        library.entries = dict(self.entries)
        return library


class Weights:
    """Modules of single subblocks and of whole blocks; embedding and tiles of the head.

    Args:
        sources: where they are read.
        kept: blocks whose modules stay in memory once they are read, and with them the parent's
            own subblocks and the head; None to keep nothing.
    """

    def __init__(self, sources: Sources, kept: tuple[Replacement, ...] | None) -> None:
        self.sources = sources
        self.config = sources.config
        self.device = torch.device(sources.device)
        self._keep = kept is not None
        self._kept_names = {
            (first, subblock, name)
            for first, last, attention, ffn in kept or ()
            for subblock, name in (("attention", attention), ("ffn", ffn))
            if first == last
        }
        self._kept_blocks = set(kept or ())
        self._subblocks: dict[tuple[int, Subblock, str], SubblockModule] = {}
        self._blocks: dict[Replacement, tuple[SubblockModule, ...]] = {}
        self._tiles: list[tuple[int, torch.Tensor]] = []
        self._norm: torch.Tensor | None = None

    def subblock(self, layer: int, subblock: Subblock, name: str) -> SubblockModule:
        """One variant of a layer; an empty name is the parent's own.

        Raises:
            InputError: the library lacks it, or its file is damaged.
        """
        key = (layer, subblock, name)
        if key in self._subblocks:
            return self._subblocks[key]
        names = (name, "") if subblock == "attention" else ("", name)
        tensors = self.sources.open_library().block(layer, layer, *names)[subblock]
        module = self._module(subblock, name or self.config.own(subblock, layer), tensors)
        if self._keep and (not name or key in self._kept_names):
            self._subblocks[key] = module
        return module

    def block(self, block: Replacement) -> tuple[SubblockModule, ...]:
        """Attention and FFN of a block that stands for several layers, or was trained whole.

        Raises:
            InputError: the library lacks it, or its file is damaged.
        """
        if block in self._blocks:
            return self._blocks[block]
        tensors = self.sources.open_library().block(*block)
        attention = self._module("attention", block[2], tensors.get("attention", {}))
        modules = (attention, self._module("ffn", block[3], tensors.get("ffn", {})))
        if block in self._kept_blocks:
            self._blocks[block] = modules
        return modules

    def _module(
        self, subblock: Subblock, name: str, tensors: dict[str, torch.Tensor]
    ) -> SubblockModule:
        variant = parse_variant(subblock, name)
        dtype, device = self.sources.dtype, self.device
        tensors = rounded(tensors, variant.weights)
        return subblock_from_tensors(variant, self.config, tensors, dtype=dtype, device=device)

    def _outside(self, name: str) -> torch.Tensor:
        return self.sources.open_parent().tensor(name, outside_names(self.config)[name])

    def embed(self, ids_BL: torch.Tensor) -> torch.Tensor:
        """Hidden states before the first layer, (B, L, D); reads the rows that are asked for."""
        hidden = self._outside(EMBEDDING)[ids_BL.cpu()]
        hidden = hidden.to(device=self.device, dtype=torch.float32)
        return scaled(hidden, self.config.scales.embedding)

    def normed(self, hidden_BLD: torch.Tensor) -> torch.Tensor:
        """Final hidden states after the last norm, scaled as logits are, (N, D) in fp32."""
        if self._norm is None:
            weight = self._outside(FINAL_NORM).to(device=self.device, dtype=torch.float32)
            self._norm = weight.clone()
        shape = (self.config.hidden_size,)
        normed_BLD = F.rms_norm(hidden_BLD, shape, self._norm, self.config.rms_norm_eps)
        return scaled(normed_BLD.flatten(0, 1), self.config.scales.logits)

    def tiles(self) -> Tiles:
        """Tiles of the head, in fp32."""
        if self._tiles:
            return self._tiles
        if not self._keep:
            return self._read_tiles()
        self._tiles = list(self._read_tiles())
        return self._tiles

    def _read_tiles(self) -> Iterator[tuple[int, torch.Tensor]]:
        name = EMBEDDING if self.config.tie_embeddings else HEAD
        rows = tile_rows(self.device)
        for start in range(0, self.config.vocab_size, rows):
            # The table is mapped, not read: only the pages of this tile come into memory.
            tile = self._outside(name)[start : start + rows]
            yield start, tile.to(device=self.device, dtype=torch.float32)
