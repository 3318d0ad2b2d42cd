"""Read a safetensors checkpoint tensor by tensor, never a whole model in memory."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from puzzle_search.arch import ArchitectureSpec, ParentConfig, Subblock, Variant
from puzzle_search.arch.families import FAMILIES
from puzzle_search.arch.variants import Shape
from puzzle_search.checkpoint.child import read_model_config
from puzzle_search.checkpoint.experts import StoredPart
from puzzle_search.checkpoint.families import Stored, stored_elsewhere
from puzzle_search.checkpoint.heterogeneous import GPT_OSS_PUZZLE
from puzzle_search.checkpoint.names import (
    HEAD,
    all_names,
    outside_names,
    stored_parts,
    subblock_shapes,
)
from puzzle_search.checkpoint.weights.mxfp4 import (
    BLOCKS,
    SCALES,
    STORED_DTYPE,
    packed_shapes,
    unpacked,
)
from puzzle_search.checkpoint.weights.quantised import FLOATS, StoredForm, dequantised
from puzzle_search.checkpoint.weights.rounding import rounded
from puzzle_search.errors import InputError
from puzzle_search.files import file_hash, read_json, value_hash

_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_DERIVED = ".rotary_emb.inv_freq"  # older checkpoints store it; it follows from the config


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
    """Tensors of a checkpoint folder, single-file or sharded; quantised ones as what they mean.

    Raises:
        InputError: the folder holds no readable safetensors checkpoint, one that is quantised in
            a way that is not read, or tensors that its ``config.json`` has no place for.
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
        self._form = StoredForm(self.folder, self._file_of)
        config, spec = read_model_config(self.folder)
        self._stored: dict[str, Stored] = {}
        model_type = read_json(self.folder / "config.json", remedy="").get("model_type")
        if model_type in (*FAMILIES, GPT_OSS_PUZZLE):
            self._stored = stored_elsewhere(config.family, all_names(config, spec))
        self._refuse_others(config, spec)

    def _refuse_others(self, config: ParentConfig, spec: ArchitectureSpec) -> None:
        """What a model has no place for would be dropped without a word: biases, further layers."""
        names = {*all_names(config, spec), HEAD}  # a tied head may be stored all the same
        wanted = {self._stored[name].name if name in self._stored else name for name in names}
        packed = {name + suffix for name in wanted for suffix in (BLOCKS, SCALES)}
        left = self._file_of.keys() - wanted - packed - self._form.scales(wanted)
        others = sorted(name for name in left if not name.endswith(_DERIVED))
        if others:
            shown = ", ".join(others[:3]) + (", ..." if len(others) > 3 else "")
            raise InputError(
                f"{self.folder}: {len(others)} tensors are not of a {config.model_type} model of "
                f"this config.json: {shown}",
                remedy="use the checkpoint that belongs to its config.json; models with other "
                "parts are not supported",
            )

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
    def is_bf16(self) -> bool:
        """Whether every tensor is stored in bf16."""
        return all(self._described(name)[1] == "BF16" for name in self._file_of)

    @property
    def sha256(self) -> str:
        """Hash of the config and of every weight file."""
        files = [self.folder / "config.json", *sorted(self.folder.glob("*.safetensors"))]
        return value_hash([[file.name, file_hash(file)] for file in files])

    def __reduce__(self) -> tuple[type[CheckpointReader], tuple[Path]]:
        """Readers cross process boundaries without their open files."""
        return CheckpointReader, (self.folder,)

    def tensor(self, name: str, shape: Shape) -> torch.Tensor:
        """Read one tensor; one of 8 bits is multiplied with its scales, and comes in fp32.

        Args:
            name: as Llama's checkpoints have it, whatever the family stores it as.
            shape: of the tensor.

        Raises:
            InputError: it is absent, has another shape, is of a dtype that is not read, or its
                file is damaged.
        """
        stored = self._stored.get(name, Stored(name=name, shape=shape))
        return stored.take(self._whole(stored.name, stored.shape))

    def _whole(self, name: str, shape: Shape) -> torch.Tensor:
        """A tensor as it is stored, its numbers unpacked."""
        if self._is_packed(name):
            parts = self._packed(name, shape)
            return unpacked(*(self._handle(part).get_tensor(part) for part in parts))
        handle, grid = self._checked(name, shape)
        tensor: torch.Tensor = handle.get_tensor(name)
        if grid is None:
            return tensor
        scale = self._form.scale_of(name)
        assert scale is not None
        return dequantised(tensor, self._handle(scale).get_tensor(scale), grid)

    def check(self, config: ParentConfig) -> None:
        """Look for every tensor of a parent, without reading any.

        Raises:
            InputError: one is absent, has another shape, is of a dtype that is not read, or its
                file is damaged.
        """
        for name, shape in all_names(config, ArchitectureSpec.identity(config)).items():
            stored = self._stored.get(name, Stored(name=name, shape=shape))
            if self._is_packed(stored.name):
                self._packed(stored.name, stored.shape)
            else:
                self._checked(stored.name, stored.shape)

    def _is_packed(self, name: str) -> bool:
        return name not in self._file_of and name + BLOCKS in self._file_of

    def _packed(self, name: str, shape: Shape) -> list[str]:
        """Names of blocks and scales that hold a tensor, once their shapes are checked."""
        for suffix, wanted in packed_shapes(shape).items():
            self._handle(name + suffix)
            found, dtype = self._described(name + suffix)
            if (found, dtype) != (wanted, STORED_DTYPE):
                raise InputError(
                    f"{self.folder}: tensor {name + suffix} is {dtype} of shape {found}, expected "
                    f"{STORED_DTYPE} of shape {wanted}",
                    remedy="use the checkpoint that belongs to its config.json",
                )
        return [name + BLOCKS, name + SCALES]

    def _checked(self, name: str, shape: Shape) -> tuple[safe_open, tuple[int, int] | None]:
        """The open file that holds a tensor of this name and shape, and the grid of its scales."""
        handle = self._handle(name)
        found, dtype = self._described(name)
        where = f"{self.folder / self._file_of[name]}: tensor {name}"
        scale = self._form.scale_of(name)
        self._form.check_dtype(where, dtype, scale)
        if found != shape:
            raise InputError(
                f"{where} has shape {found}, expected {shape}",
                remedy="use the checkpoint that belongs to its config.json",
            )
        if scale is None:
            return handle, None
        scales, scale_dtype = self._described(scale)
        if scale_dtype not in FLOATS:
            self._form.check_dtype(f"{self.folder}: tensor {scale}", scale_dtype, None)
        return handle, self._form.grid(where, shape, scales)

    def _handle(self, name: str) -> safe_open:
        """The open file that holds a tensor of this name."""
        if name not in self._file_of:
            raise InputError(
                f"{self.folder}: tensor {name} is missing",
                remedy="use a complete checkpoint that matches its config.json",
            )
        file = self._file_of[name]
        if file not in self._open:
            self._open[file] = open_safetensors(self.folder / file)
        return self._open[file]

    def _described(self, name: str) -> tuple[Shape, str]:
        """Shape and dtype of a tensor as stored."""
        try:
            stored = self._handle(name).get_slice(name)
        except SafetensorError as error:
            raise InputError(
                f"{self.folder / self._file_of[name]}: tensor {name} is missing, though the index "
                "names it",
                remedy="download the checkpoint again",
            ) from error
        return tuple(stored.get_shape()), stored.get_dtype()

    def subblock(
        self, subblock: Subblock, block: int, variant: Variant, config: ParentConfig
    ) -> dict[str, torch.Tensor]:
        """Tensors of one subblock by local name, rounded to the type that its variant names."""
        stored = {
            local: self._joined(list(stored_parts(subblock, block, local, shape, config)), shape)
            for local, shape in subblock_shapes(variant, config).items()
        }
        return rounded(stored, variant.weights)

    def _joined(self, parts: list[StoredPart], shape: Shape) -> torch.Tensor:
        first = self.tensor(parts[0].name, parts[0].shape)
        if len(parts) == 1:
            return first.view(shape)
        joined = first.new_empty(shape)
        for part in parts:
            joined[part.place] = self.tensor(part.name, part.shape)
        return joined

    def outside(self, config: ParentConfig) -> dict[str, torch.Tensor]:
        """Embedding, final norm and untied head, by checkpoint name."""
        return {name: self.tensor(name, shape) for name, shape in outside_names(config).items()}
