"""Read a safetensors checkpoint tensor by tensor, never a whole model in memory."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from puzzle_search.arch import ParentConfig, Subblock, Variant, parse_variant
from puzzle_search.arch.variants import Shape
from puzzle_search.checkpoint.names import checkpoint_name, outside_names, subblock_shapes
from puzzle_search.errors import InputError
from puzzle_search.files import file_hash, read_json, value_hash

_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"


def open_safetensors(file: Path) -> safe_open:
    """Open one safetensors file.

    Raises:
        InputError: it is missing, truncated or damaged.
    """
    try:
        return safe_open(file, framework="pt")
    except FileNotFoundError as error:
        raise InputError(f"{file} does not exist", remedy="download the checkpoint") from error
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"{file} is truncated or damaged: {error}", remedy="download or write it again"
        ) from error


class CheckpointReader:
    """Tensors of a checkpoint folder, single-file or sharded.

    Raises:
        InputError: the folder holds no readable safetensors checkpoint.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise InputError(f"{folder} is not a folder", remedy="name a checkpoint folder")
        index = self.folder / _INDEX
        if index.exists():
            self._file_of = self._read_index(index)
        else:
            self._file_of = dict.fromkeys(open_safetensors(self.folder / _SINGLE).keys(), _SINGLE)
        self._open: dict[str, safe_open] = {}

    def _read_index(self, index: Path) -> dict[str, str]:
        remedy = "download it again"
        weight_map = read_json(index, remedy=remedy).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise InputError(f"{index} holds no weight_map", remedy=remedy)
        for name, file in weight_map.items():
            if not isinstance(file, str) or not file.endswith(".safetensors"):
                raise InputError(f"{index}: {name} names no safetensors file", remedy=remedy)
            if Path(file).name != file:
                raise InputError(
                    f"{index}: {name} points outside the folder ({file})",
                    remedy="use a checkpoint whose shards lie beside the index",
                )
        return dict(weight_map)

    @property
    def names(self) -> set[str]:
        """Names of all tensors."""
        return set(self._file_of)

    @property
    def sha256(self) -> str:
        """Hash of the config and of every weight file."""
        files = [self.folder / "config.json", *sorted(self.folder.glob("*.safetensors"))]
        return value_hash([[file.name, file_hash(file)] for file in files])

    def __reduce__(self) -> tuple[type[CheckpointReader], tuple[Path]]:
        """Readers cross process boundaries without their open files."""
        return CheckpointReader, (self.folder,)

    def tensor(self, name: str, shape: Shape) -> torch.Tensor:
        """Read one tensor.

        Raises:
            InputError: it is absent, has another shape, or its file is damaged.
        """
        tensor: torch.Tensor = self._checked(name, shape).get_tensor(name)
        return tensor

    def check(self, config: ParentConfig) -> None:
        """Look for every tensor of a parent, without reading any.

        Raises:
            InputError: one is absent, has another shape, or its file is damaged.
        """
        for name, shape in outside_names(config).items():
            self._checked(name, shape)
        own: tuple[tuple[Subblock, str], ...] = (
            ("attention", config.attention),
            ("ffn", config.ffn),
        )
        for layer in range(config.num_layers):
            for subblock, variant in own:
                shapes = subblock_shapes(parse_variant(subblock, variant), config)
                for local, shape in shapes.items():
                    self._checked(checkpoint_name(subblock, layer, local), shape)

    def _checked(self, name: str, shape: Shape) -> safe_open:
        """The open file that holds a tensor of this name and shape."""
        if name not in self._file_of:
            raise InputError(
                f"{self.folder}: tensor {name} is missing",
                remedy="use a complete checkpoint that matches its config.json",
            )
        file = self._file_of[name]
        if file not in self._open:
            self._open[file] = open_safetensors(self.folder / file)
        handle = self._open[file]
        try:
            found = tuple(handle.get_slice(name).get_shape())
        except SafetensorError as error:
            raise InputError(
                f"{self.folder / file}: tensor {name} is missing, though the index names it",
                remedy="download the checkpoint again",
            ) from error
        if found != shape:
            raise InputError(
                f"{self.folder / file}: tensor {name} has shape {found}, expected {shape}",
                remedy="use the checkpoint that belongs to its config.json",
            )
        return handle

    def subblock(
        self, subblock: Subblock, block: int, variant: Variant, config: ParentConfig
    ) -> dict[str, torch.Tensor]:
        """Tensors of one subblock by local name."""
        return {
            local: self.tensor(checkpoint_name(subblock, block, local), shape)
            for local, shape in subblock_shapes(variant, config).items()
        }

    def outside(self, config: ParentConfig) -> dict[str, torch.Tensor]:
        """Embedding, final norm and untied head, by checkpoint name."""
        return {name: self.tensor(name, shape) for name, shape in outside_names(config).items()}
