"""Write safetensors: single files whole, checkpoints in shards with an index."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from puzzle_search.errors import InputError
from puzzle_search.files import write_text, written_whole


def save_tensors(
    tensors: dict[str, torch.Tensor], file: Path, metadata: dict[str, str] | None = None
) -> None:
    """Write one safetensors file, whole or not at all.

    Raises:
        InputError: the file cannot be written, mostly because the disk is full.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with written_whole(file) as temporary:
        try:
            save_file(contiguous, temporary, metadata={"format": "pt"} | (metadata or {}))
        except SafetensorError as error:  # how the library reports the system's errors
            raise InputError(
                f"{file} cannot be written: {error}",
                remedy="free space on that disk, or write elsewhere; then run the command again",
            ) from error


class CheckpointWriter:
    """Collects tensors and writes a shard whenever ``shard_bytes`` are held."""

    def __init__(self, folder: Path, *, shard_bytes: int = 4 * 2**30) -> None:
        self._folder = folder
        self._shard_bytes = shard_bytes
        self._held: dict[str, torch.Tensor] = {}
        self._held_bytes = 0
        self._total_bytes = 0
        self._shards: list[list[str]] = []

    def add(self, name: str, tensor: torch.Tensor) -> None:
        """Take one tensor; may write a shard."""
        if self._held and self._held_bytes + tensor.nbytes > self._shard_bytes:
            self._flush()
        self._held[name] = tensor
        self._held_bytes += tensor.nbytes

    def finish(self) -> None:
        """Write what is held, name the shards as Hugging Face does, and write the index."""
        self._flush()
        count = len(self._shards)
        if count == 1:
            self._shard_path(1).rename(self._folder / "model.safetensors")
            return
        weight_map: dict[str, str] = {}
        for number, names in enumerate(self._shards, start=1):
            file = f"model-{number:05d}-of-{count:05d}.safetensors"
            self._shard_path(number).rename(self._folder / file)
            weight_map |= dict.fromkeys(names, file)
        index = {"metadata": {"total_size": self._total_bytes}, "weight_map": weight_map}
        write_text(self._folder / "model.safetensors.index.json", json.dumps(index, indent=2))

    def _flush(self) -> None:
        self._shards.append(list(self._held))
        self._total_bytes += self._held_bytes
        save_tensors(self._held, self._shard_path(len(self._shards)))
        self._held, self._held_bytes = {}, 0

    def _shard_path(self, number: int) -> Path:
        return self._folder / f"shard-{number}.safetensors"
