"""A GGUF file, opened through the ``gguf`` package: metadata by key and type, tensors by name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from puzzle_search.errors import InputError
from puzzle_search.packages import installed

_T = TypeVar("_T")
Shape = tuple[int, ...]
Array = npt.NDArray[Any]

_AGAIN = "download the file again, or convert the model again with a current llama.cpp"


@dataclass(frozen=True, kw_only=True)
class StoredTensor:
    """One tensor as stored.

    Attributes:
        shape: rows first, as in a safetensors file.
        data: a view of the file; its last axis holds blocks of bytes where it is quantised.
        type: the ``gguf`` package's quantisation type.
    """

    shape: Shape
    data: Array
    type: Any

    def values(self, data: Array) -> npt.NDArray[np.float32]:
        """What some rows of ``data`` stand for."""
        from gguf.quants import dequantize

        values: npt.NDArray[np.float32] = dequantize(data, self.type)
        return values


class GgufSource:
    """A GGUF file that holds one whole model.

    Attributes:
        file: its path.
        architecture: ``general.architecture``, the first word of the model's own keys.
        tensors: every tensor by name.

    Raises:
        InputError: it cannot be read, is not whole, or holds something else than a model.
        MissingDependencyError: the ``gguf`` package is not installed.
    """

    def __init__(self, file: str | Path) -> None:
        self.file = Path(file)
        with installed():
            from gguf.gguf_reader import GGUFReader
        if not self.file.is_file():
            raise InputError(f"{self.file} is not a file", remedy="name a .gguf file")
        try:
            reader = GGUFReader(self.file)
            self._fields = {name: field.contents() for name, field in reader.fields.items()}
        # What the package lets through where a file ends early, or holds what it does not know.
        except (ValueError, KeyError, IndexError, OverflowError, OSError) as error:
            raise InputError(
                f"{self.file} is truncated, damaged, or not a GGUF file that gguf can read: "
                f"{error}",
                remedy=f"{_AGAIN}; a type that gguf does not know yet needs a newer gguf",
            ) from error
        if reader.byte_order != "I":
            raise InputError(f"{self.file} is of the other byte order", remedy=_AGAIN)
        if self.get("general.type", str, "model") != "model":
            raise InputError(
                f"{self.file} holds no model but: {self._fields['general.type']}",
                remedy="name the .gguf file of the model itself",
            )
        if self.get("split.count", int, 1) > 1:
            raise InputError(
                f"{self.file} is one of {self._fields['split.count']} parts of a model",
                remedy="join the parts first: llama-gguf-split --merge FIRST_PART WHOLE.gguf",
            )
        self.architecture = self.get("general.architecture", str)
        self.tensors = {
            tensor.name: StoredTensor(
                shape=tuple(reversed(tensor.shape.tolist())),
                data=tensor.data,
                type=tensor.tensor_type,
            )
            for tensor in reader.tensors
        }
        self._check_types()

    def _check_types(self) -> None:
        for name, tensor in self.tensors.items():
            try:
                tensor.values(tensor.data[:1])
            except NotImplementedError as error:
                raise InputError(
                    f"{self.file}: {name} is of type {tensor.type.name}, which gguf cannot "
                    "turn into floats",
                    remedy="use a file of another quantisation, such as Q8_0, Q4_K or F16",
                ) from error

    def refuse(self, what: str, *, remedy: str) -> InputError:
        """An error about this file."""
        return InputError(f"{self.file}: {what}", remedy=remedy)

    def keys(self, prefix: str) -> set[str]:
        """Metadata keys that begin so and say something: neither 0, false nor empty."""
        return {key for key, value in self._fields.items() if key.startswith(prefix) and value}

    def get(self, key: str, kind: type[_T], default: _T | None = None) -> _T:
        """One value of the metadata; a whole number also serves as a float.

        Raises:
            InputError: it is of another type, or absent without a default.
        """
        value = self._fields.get(key, default)
        if kind is float and type(value) is int:
            value = float(value)
        if type(value) is not kind:
            found = "is missing" if value is None else f"is {value!r:.60}, not {kind.__name__}"
            raise self.refuse(f"{key} {found}", remedy=_AGAIN)
        if kind is float:  # the decimal that was meant, 1e-05, not 9.999999747378752e-06
            value = float(str(np.float32(str(value))))
        assert isinstance(value, kind)
        return value

    def get_list(self, key: str, kind: type[_T], length: int | None = None) -> list[_T]:
        """One array of the metadata.

        Raises:
            InputError: it is absent, or of another type or length.
        """
        values: list[_T] = self.get(key, list)
        if any(type(value) is not kind for value in values):
            raise self.refuse(f"{key} is not a list of {kind.__name__}", remedy=_AGAIN)
        if length is not None and len(values) != length:
            raise self.refuse(f"{key} has {len(values)} entries, not {length}", remedy=_AGAIN)
        return values
