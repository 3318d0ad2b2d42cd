"""Write a planned GGUF file tensor by tensor, read it back, and give it its name."""

from __future__ import annotations

import ctypes
import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from puzzle_search.errors import InputError
from puzzle_search.export.plan import ExportPlan, PlannedTensor
from puzzle_search.files import written_whole
from puzzle_search.packages import installed

if TYPE_CHECKING:
    from gguf import GGUFWriter

_NUMBERS_AT_ONCE = 1 << 24  # of a tensor in conversion: 64 MB in f32


def write_gguf(plan: ExportPlan, out: Path) -> None:
    """Write the file, whole or not at all; the same plan gives the same bytes.

    Raises:
        InputError: a tensor cannot be read or holds what is no number, the disk is full, or what
            was read back differs.
        MissingDependencyError: the `gguf` package is absent.
    """
    with installed():
        from gguf import GGUFWriter
    with written_whole(out) as temporary:
        writer = GGUFWriter(temporary, plan.architecture)
        try:
            _write_header(writer, plan)
            digests = [_write_tensor(writer, tensor) for tensor in plan.tensors]
        finally:
            writer.close()
        _read_back(temporary, plan, digests)


def _write_header(writer: GGUFWriter, plan: ExportPlan) -> None:
    from gguf import GGML_QUANT_VERSION

    for key, value in plan.header.items():
        own = key.startswith(("general.", "tokenizer."))
        _add(writer, key if own else f"{plan.architecture}.{key}", value)
    writer.add_quantization_version(GGML_QUANT_VERSION)
    for tensor in plan.tensors:
        # The type is named, and so the numpy type is of no account.
        writer.add_tensor_info(
            tensor.name, tensor.shape, np.dtype(np.float32), tensor.bytes, _type(tensor)
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()


def _add(writer: GGUFWriter, key: str, value: Any) -> None:
    add: dict[type, Callable[[str, Any], None]]
    add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32,
           str: writer.add_string, list: writer.add_array}  # fmt: skip
    add[type(value)](key, value)


def _type(tensor: PlannedTensor) -> Any:
    from gguf import GGMLQuantizationType

    return GGMLQuantizationType[tensor.dtype.upper()]


def _write_tensor(writer: GGUFWriter, tensor: PlannedTensor) -> str:
    assert writer.fout is not None
    file, digest, written = writer.fout[0], hashlib.sha256(), 0
    writer.write_padding(file, file.tell())
    for piece in _converted(tensor):
        data = piece.tobytes()
        file.write(data)
        digest.update(data)
        written += len(data)
    assert written == tensor.bytes, tensor.name
    writer.write_padding(file, written)
    return digest.hexdigest()


def _converted(tensor: PlannedTensor) -> Iterator[np.ndarray[Any, Any]]:
    """The tensor in the file's type, a few rows at a time."""
    from gguf.quants import quantize

    with installed():
        quantise = _by_llama_cpp() if tensor.dtype == "q4_k" else quantize
    whole = tensor.make()
    rows = whole.view(-1, whole.shape[-1])
    for part in rows.split(max(1, _NUMBERS_AT_ONCE // rows.shape[1])):
        numbers = part.to(torch.float32)
        if not bool(torch.isfinite(numbers).all()):
            raise InputError(
                f"{tensor.source} holds numbers that are not finite",
                remedy="build the child again from sound weights",
            )
        yield quantise(numbers.contiguous().numpy(), _type(tensor))


def _by_llama_cpp() -> Callable[[np.ndarray[Any, Any], Any], np.ndarray[Any, Any]]:
    """llama.cpp's own quantisation, by the library inside `xllamacpp`: `gguf` has no K-quants."""
    from xllamacpp import xllamacpp

    chunk = ctypes.CDLL(xllamacpp.__file__).ggml_quantize_chunk
    chunk.restype = ctypes.c_size_t

    def quantise(rows: np.ndarray[Any, Any], kind: Any) -> np.ndarray[Any, Any]:
        from gguf.quants import quant_shape_to_byte_shape

        made = np.empty(quant_shape_to_byte_shape(rows.shape, kind), np.uint8)
        number, width = map(ctypes.c_int64, rows.shape)
        source, target = (ctypes.c_void_p(array.ctypes.data) for array in (rows, made))
        written = chunk(int(kind), source, target, ctypes.c_int64(0), number, width, None)
        assert written == made.nbytes
        return made

    return quantise


def _read_back(file: Path, plan: ExportPlan, digests: list[str]) -> None:
    from gguf import GGUFReader

    found = GGUFReader(file).tensors
    for planned, digest, tensor in zip(plan.tensors, digests, found, strict=True):
        shape = tuple(int(size) for size in reversed(tensor.shape))
        told = (planned.name, planned.shape, _type(planned), digest)
        data = hashlib.sha256(np.ascontiguousarray(tensor.data).data).hexdigest()
        if told != (tensor.name, shape, tensor.tensor_type, data):
            raise InputError(
                f"{file}: tensor {planned.name} differs from what was written",
                remedy="check that disk, and export again",
            )
