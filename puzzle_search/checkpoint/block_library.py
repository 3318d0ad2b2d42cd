"""The block library on disk: one safetensors file per (layer, variant), and ``library.json``."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch

from puzzle_search import __version__
from puzzle_search.arch import ParentConfig, Subblock, parse_variant
from puzzle_search.checkpoint.names import subblock_shapes
from puzzle_search.checkpoint.reader import CheckpointReader, open_safetensors
from puzzle_search.checkpoint.writer import save_tensors
from puzzle_search.errors import InputError
from puzzle_search.files import (
    Journal,
    check_keys,
    file_hash,
    read_json,
    value_hash,
    write_text,
)

FORMAT = "puzzle-search.library/1"


def resume_journal(journal: Journal, made_from: dict[str, Any]) -> list[dict[str, Any]]:
    """The results in a journal whose first line says what they were made from.

    An empty journal is begun with that line.

    Args:
        journal: first line ``{"made_from": ...}``, then one result a line.
        made_from: settings and content hashes that every result depends on.

    Raises:
        InputError: the journal was made from something else.
    """
    lines = journal.read()
    if not lines:
        journal.append({"made_from": made_from})
        return []
    found = lines[0].get("made_from")
    if not isinstance(found, dict):
        found = {}
    differ = sorted(
        key for key in made_from.keys() | found.keys() if found.get(key) != made_from.get(key)
    )
    if differ:
        raise InputError(
            f"{journal.path} holds results of another run: {', '.join(differ)} differ",
            remedy="give what that run was given, write elsewhere, or delete that file to begin "
            "anew",
        )
    return lines[1:]


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

    Entries are journaled as they are trained, so that a killed run loses one at most. A new
    object has no entries: ``resume`` takes up an unfinished library, ``from_folder`` opens one.
    """

    def __init__(self, folder: str | Path, config: ParentConfig, parent: CheckpointReader) -> None:
        self.folder = Path(folder)
        self._config = config
        self._parent = parent
        self._journal = Journal(self.folder / "journal.jsonl")
        self.entries: dict[tuple[int, str, str], LibraryEntry] = {}

    @property
    def parent_sha256(self) -> str:
        """Hash of the parent's config and weight files."""
        files = [self._parent.folder / "config.json"]
        files += sorted(self._parent.folder.glob("*.safetensors"))
        return value_hash([[file.name, file_hash(file)] for file in files])

    @property
    def sha256(self) -> str:
        """Hash of the parent and of every entry's weights."""
        entries = [[*key, self.entries[key].sha256] for key in sorted(self.entries)]
        return value_hash([self.parent_sha256, entries])

    def resume(self, made_from: dict[str, Any]) -> None:
        """Take up the entries of an unfinished library that was made in the same way.

        Raises:
            InputError: it was made in another way, or of another parent.
        """
        made_from = made_from | {"parent_sha256": self.parent_sha256}
        if not self._journal.read():  # of an older library, whose files are about to change
            (self.folder / "library.json").unlink(missing_ok=True)
        self._take(resume_journal(self._journal, made_from), self._journal.path)

    def _take(self, lines: list[dict[str, Any]], file: Path) -> None:
        for line in lines:
            check_keys(line, f"{file}, an entry", required={f.name for f in fields(LibraryEntry)})
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
            "parent_sha256": self.parent_sha256,
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
            InputError: it is not complete, not a library, or one of another parent.
        """
        index = Path(folder) / "library.json"
        content = read_json(index, remedy="run 'puzzle-search library' to its end first")
        if content.get("format") != FORMAT:
            raise InputError(f"{index}: format is not {FORMAT}", remedy="build the library again")
        keys = {"package_version", "evidence", "parent", "parent_sha256", "made_from", "entries"}
        check_keys(content, index, required={"format", *keys})
        library = cls(folder, config, parent)
        if content["parent_sha256"] != library.parent_sha256:
            raise InputError(
                f"{index} was made of another parent than {parent.folder}",
                remedy="name the parent that it was made of, or build a library for this one",
            )
        if not isinstance(content["entries"], list):
            raise InputError(f"{index}: entries is not a list", remedy="build the library again")
        library._take(content["entries"], index)
        return library

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
