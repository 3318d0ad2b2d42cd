"""What a benchmark is asked to serve: a checkpoint, or a shape with random weights."""

from __future__ import annotations

import gc
from dataclasses import dataclass
from pathlib import Path

import torch

from puzzle_search.arch import ArchitectureSpec, ParentConfig
from puzzle_search.checkpoint.child import read_model_config
from puzzle_search.errors import InputError
from puzzle_search.resources import resource
from puzzle_search.runtime import Precision, ServingDecoder

_SPEC_SUFFIXES = (".yaml", ".yml")


@dataclass(frozen=True, kw_only=True)
class ServedModel:
    """A model to serve, not loaded yet.

    Attributes:
        name: as it was asked for.
        config: of its parent.
        spec: its blocks.
        folder: where its weights are; None for random ones.
    """

    name: str
    config: ParentConfig
    spec: ArchitectureSpec
    folder: Path | None

    @classmethod
    def find(cls, name: str, *, model: str | None = None) -> ServedModel:
        """Take what a name stands for.

        Args:
            name: a checkpoint folder; an architecture spec; or a parent without weights: a
                ``config.json``, a folder with one, or a shipped example.
            model: parent of a spec, by the same words; the spec's own by default.

        Raises:
            InputError: there is no such thing, or it is damaged.
        """
        path = Path(name)
        if path.suffix in _SPEC_SUFFIXES:
            spec = ArchitectureSpec.from_file(path)
            config = _find_config(model or spec.parent)
            spec.check_fits(config)
            return cls(name=name, config=config, spec=spec, folder=None)
        if any(path.glob("*.safetensors")):
            config, spec = read_model_config(path)
            return cls(name=name, config=config, spec=spec, folder=path)
        config = _find_config(name)
        return cls(name=name, config=config, spec=ArchitectureSpec.identity(config), folder=None)

    @property
    def weights(self) -> str:
        """Where its weights come from, in words."""
        return "random weights" if self.folder is None else "checkpoint"

    def load(self, precision: Precision, device: torch.device) -> ServingDecoder:
        """Put it on a device.

        Raises:
            InputError: the checkpoint is incomplete or damaged.
        """
        if self.folder is None:
            return ServingDecoder.random(self.config, self.spec, precision, device)
        return ServingDecoder.from_checkpoint(self.folder, precision, device)


def free_memory() -> None:
    """Return what nothing refers to any more to the device."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _find_config(name: str) -> ParentConfig:
    shipped = resource("examples", name.lower(), "config.json")
    path = Path(name)
    if path.is_file() or (path / "config.json").is_file():
        return ParentConfig.from_file(path)
    if shipped.is_file():
        return ParentConfig.from_file(shipped, name=shipped.parent.name)
    known = sorted(file.parent.name for file in resource("examples").glob("*/config.json"))
    raise InputError(
        f"{name!r} is neither a checkpoint folder, a config.json, a spec, nor a shipped example",
        remedy=f"name one of these; the parent of a spec goes to --model; shipped: "
        f"{', '.join(known)}",
    )
