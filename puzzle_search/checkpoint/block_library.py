"""The block library on disk: one safetensors file per trained replacement, and ``library.json``.

A replacement is named as in a score table: first and last layer, attention, FFN, where an empty
name means the parent's own subblock. Singles replace one subblock of a layer; pairs, trained
together, both; runs put one block in the place of several layers.
"""

from __future__ import annotations

import json
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import ConfigDict, Field

from puzzle_search import __version__
from puzzle_search.arch import (
    ParentConfig,
    Replacement,
    Subblock,
    canonical,
    parse_variant,
    shape_of,
)
from puzzle_search.arch.variants import AttentionName, FfnName
from puzzle_search.checkpoint.names import subblock_shapes
from puzzle_search.checkpoint.reader import CheckpointReader, open_safetensors
from puzzle_search.checkpoint.writer import save_tensors
from puzzle_search.errors import InputError
from puzzle_search.files import (
    Count,
    Journal,
    Text,
    check_keys,
    check_line,
    file_hash,
    read_json,
    resume_journal,
    value_hash,
    write_text,
)

FORMAT = "puzzle-search.library/2"

# Tensors of a block by subblock and local name; a no-op has none.
BlockTensors = dict[Subblock, dict[str, torch.Tensor]]

_Loss = Annotated[float, Field(ge=0)]
_SUBBLOCKS: tuple[Subblock, Subblock] = ("attention", "ffn")


@dataclass(frozen=True, kw_only=True)
class LibraryEntry:
    """One trained replacement: how it was made and what it lost.

    Losses and errors are MSE(parent's output, output with this replacement) / MSE(parent's, 0)
    after the last layer replaced, on held-out tokens.

    Attributes:
        initialised_by: the initialiser that was trained on.
        initial_errors: error of every initialiser that was tried, by name.
        tokens: training tokens seen; 0 keeps the initialisation.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    first_layer: Count
    last_layer: Count
    attention: AttentionName
    ffn: FfnName
    initialised_by: Text
    initial_errors: dict[Text, _Loss]
    tokens: Count
    loss_initial: _Loss
    loss_trained: _Loss
    sha256: Text

    @property
    def key(self) -> Replacement:
        """What the entry replaces, and by what."""
        return (self.first_layer, self.last_layer, self.attention, self.ffn)


def replacement_name(key: Replacement) -> str:
    """What people call it: ``attention gqa_1 for layer 3``, or with its FFN, or ``layers 3-4``."""
    layers = f"layer {key[0]}" if key[0] == key[1] else f"layers {key[0]}-{key[1]}"
    parts = zip(_SUBBLOCKS, key[2:], strict=True)
    return f"{' with '.join(f'{part} {name}' for part, name in parts if name)} for {layers}"


def layers_file_name(key: Replacement) -> str:
    """``layer_003`` or ``layers_003-004``: what files of these layers are called."""
    return f"layer_{key[0]:03d}" if key[0] == key[1] else f"layers_{key[0]:03d}-{key[1]:03d}"


class BlockLibrary:
    """Trained blocks of a parent; the parent's own subblocks come from its checkpoint.

    Entries are journaled as they are trained, so that a killed run loses one at most. A new
    object has no entries: ``resume`` takes up an unfinished library, ``from_folder`` opens one.
    """

    def __init__(self, folder: str | Path, config: ParentConfig, parent: CheckpointReader) -> None:
        self.folder = Path(folder)
        self.config = config
        self._parent = parent
        self._journal = Journal(self.folder / "journal.jsonl")
        self.entries: dict[Replacement, LibraryEntry] = {}

    @cached_property
    def parent_sha256(self) -> str:
        """Hash of the parent's config and weight files."""
        return self._parent.sha256

    @property
    def sha256(self) -> str:
        """Hash of the parent and of every entry's weights."""
        entries = [[*key, self.entries[key].sha256] for key in sorted(self.entries)]
        return value_hash([self.parent_sha256, entries])

    def held(self) -> AbstractContextManager[None]:
        """Keep others from building here, until the block or the process ends.

        Raises:
            InputError: someone else is building here.
        """
        return self._journal.held()

    def resume(self, made_from: dict[str, Any]) -> None:
        """Take up the entries of an unfinished library that was made in the same way.

        Raises:
            InputError: it was made in another way, or of another parent.
        """
        made_from = made_from | {"parent_sha256": self.parent_sha256}
        if not self._journal.read():  # of an older library, whose files are about to change
            (self.folder / "library.json").unlink(missing_ok=True)
        entries: list[LibraryEntry] = resume_journal(self._journal, made_from, LibraryEntry)
        self.entries |= {entry.key: entry for entry in entries}

    def _file(self, key: Replacement) -> Path:
        parts = zip(_SUBBLOCKS, key[2:], strict=True)
        names = "+".join(f"{subblock}.{variant}" for subblock, variant in parts if variant)
        return self.folder / layers_file_name(key) / f"{names}.safetensors"

    def add(self, entry: LibraryEntry, tensors: BlockTensors) -> None:
        """Store one trained replacement; ``entry.sha256`` is filled in."""
        file = self._file(entry.key)
        save_tensors(
            {f"{part}.{name}": t for part, named in tensors.items() for name, t in named.items()},
            file,
        )
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
            "parent": self.config.name,
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
        remedy = "build the library again"
        for number, line in enumerate(content["entries"], start=1):
            where = f"{index}, entry {number}"
            entry: LibraryEntry = check_line(LibraryEntry, line, where, remedy=remedy)
            library.entries[entry.key] = entry
        return library

    def block(self, first_layer: int, last_layer: int, attention: str, ffn: str) -> BlockTensors:
        """Tensors of the block that stands for these layers.

        A pair that was trained together wins over the singles of its subblocks. Empty names, and
        in a single layer the parent's own variants, are the parent's weights. The type of a
        variant's weights is of no account: they come as they were trained.

        Raises:
            InputError: the library holds no such block, or its file is damaged.
        """
        attention, ffn = shape_of(attention), shape_of(ffn)
        if first_layer < last_layer:
            return self._trained((first_layer, last_layer, attention, ffn))
        pair = canonical((first_layer, first_layer, attention, ffn), self.config)
        *_, attention, ffn = pair
        if attention and ffn and pair in self.entries:
            return self._trained(pair)
        return {
            "attention": self._single(first_layer, "attention", attention),
            "ffn": self._single(first_layer, "ffn", ffn),
        }

    def _single(self, layer: int, subblock: Subblock, variant: str) -> dict[str, torch.Tensor]:
        config = self.config
        if not variant:
            own = parse_variant(subblock, config.own(subblock, layer))
            return self._parent.subblock(subblock, layer, own, config)
        if not subblock_shapes(parse_variant(subblock, variant), config):
            return {}
        names = (variant, "") if subblock == "attention" else ("", variant)
        return self._trained((layer, layer, *names))[subblock]

    @property
    def _rebuild(self) -> str:
        return f"put the file back, or delete {self.folder} and build the library again"

    def _trained(self, key: Replacement) -> BlockTensors:
        entry, file = self.entries.get(key), self._file(key)
        if entry is None:
            raise InputError(
                f"{self.folder} holds no {replacement_name(key)}",
                remedy="train it with 'puzzle-search library', or drop it from the search space",
            )
        handle = open_safetensors(file)
        if file_hash(file) != entry.sha256:
            raise InputError(f"{file} was changed after it was trained", remedy=self._rebuild)
        tensors: BlockTensors = {}
        for subblock, variant in zip(_SUBBLOCKS, key[2:], strict=True):
            if not variant:
                continue
            named = tensors[subblock] = {}
            shapes = subblock_shapes(parse_variant(subblock, variant), self.config)
            for name, shape in shapes.items():
                named[name] = handle.get_tensor(f"{subblock}.{name}")
                if tuple(named[name].shape) != shape:
                    raise InputError(
                        f"{file}: {name} has shape {tuple(named[name].shape)}, expected {shape}",
                        remedy=self._rebuild,
                    )
        return tensors
