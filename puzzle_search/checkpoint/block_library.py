"""The block library on disk: one safetensors file per (layer, variant), and ``library.json``."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from puzzle_search import __version__
from puzzle_search.arch import ParentConfig, Subblock, parse_variant
from puzzle_search.checkpoint.names import subblock_shapes
from puzzle_search.checkpoint.reader import CheckpointReader, open_safetensors
from puzzle_search.checkpoint.writer import save_tensors
from puzzle_search.errors import InputError
from puzzle_search.files import Journal, check_keys, file_hash, read_json, write_text

FORMAT = "puzzle-search.library/1"


@dataclass(frozen=True, kw_only=True)
class LibraryEntry:
    """One trained subblock: how it was made and what it lost.

    Losses are MSE(parent block output, block output with this variant) / MSE(parent's, 0) on
    held-out tokens.
    """

    layer: int
    subblock: Subblock
    variant: str
    initialised_by: str
    tokens: int
    loss_initial: float
    loss_trained: float
    sha256: str

    @property
    def key(self) -> tuple[int, str, str]:
        """What the entry replaces, and by what."""
        return (self.layer, self.subblock, self.variant)


class BlockLibrary:
    """Trained subblocks of a parent; the parent's own subblocks come from its checkpoint.

    Entries are journaled as they are trained, so that a killed run loses one at most.
    """

    def __init__(self, folder: str | Path, config: ParentConfig, parent: CheckpointReader) -> None:
        self.folder = Path(folder)
        self._config = config
        self._parent = parent
        self._journal = Journal(self.folder / "journal.jsonl")
        self.entries: dict[tuple[int, str, str], LibraryEntry] = {}
        for line in self._journal.read():
            entry = LibraryEntry(**line)
            self.entries[entry.key] = entry

    def _file(self, layer: int, subblock: Subblock, variant: str) -> Path:
        return self.folder / f"layer_{layer:03d}" / f"{subblock}.{variant}.safetensors"

    def add(self, entry: LibraryEntry, tensors: dict[str, torch.Tensor]) -> None:
        """Store one trained subblock; ``entry.sha256`` is filled in."""
        file = self._file(entry.layer, entry.subblock, entry.variant)
        save_tensors(tensors, file)
        stored = LibraryEntry(**(asdict(entry) | {"sha256": file_hash(file)}))
        self._journal.append(asdict(stored))
        self.entries[stored.key] = stored

    def finish(self, made_from: dict[str, Any]) -> None:
        """Write ``library.json``: the library is complete."""
        entries = [asdict(self.entries[key]) for key in sorted(self.entries)]
        content = {
            "format": FORMAT,
            "package_version": __version__,
            "evidence": "measured",
            "parent": self._config.name,
            "made_from": made_from,
            "entries": entries,
        }
        write_text(self.folder / "library.json", json.dumps(content, indent=1))

    @classmethod
    def from_folder(
        cls, folder: str | Path, config: ParentConfig, parent: CheckpointReader
    ) -> BlockLibrary:
        """Open a complete library.

        Raises:
            InputError: it is not complete, or not a library.
        """
        index = Path(folder) / "library.json"
        content = read_json(index, remedy="run 'puzzle-search library' to its end first")
        keys = {"format", "package_version", "evidence", "parent", "made_from", "entries"}
        check_keys(content, index, required=keys)
        if content["format"] != FORMAT:
            raise InputError(f"{index}: format is not {FORMAT}", remedy="build the library again")
        return cls(folder, config, parent)

    def subblock(self, layer: int, subblock: Subblock, variant: str) -> dict[str, torch.Tensor]:
        """Tensors of a variant by local name: trained, the parent's own, or none for a no-op.

        Raises:
            InputError: the variant was not trained for this layer, or its file is damaged.
        """
        parsed = parse_variant(subblock, variant)
        own = self._config.attention if subblock == "attention" else self._config.ffn
        if variant == own:
            return self._parent.subblock(subblock, layer, parsed, self._config)
        shapes = subblock_shapes(parsed, self._config)
        if not shapes:
            return {}
        file = self._file(layer, subblock, variant)
        entry = self.entries.get((layer, subblock, variant))
        if entry is None:
            raise InputError(
                f"{self.folder} holds no {subblock} {variant} for layer {layer}",
                remedy="train it with 'puzzle-search library', or drop it from the search space",
            )
        handle = open_safetensors(file)
        if file_hash(file) != entry.sha256:
            raise InputError(f"{file} was changed after it was trained", remedy="train it again")
        tensors = {}
        for name, shape in shapes.items():
            tensors[name] = handle.get_tensor(name)
            if tuple(tensors[name].shape) != shape:
                raise InputError(
                    f"{file}: {name} has shape {tuple(tensors[name].shape)}, expected {shape}",
                    remedy="train it again",
                )
        return tensors
