"""Matrices stored as 8-bit numbers with scales; any other quantisation is refused by its name.

A weight is its stored number times a scale: one for the matrix, for each row, or for each block.
That is how compressed-tensors, DeepSeek's and Qwen's ``fp8``, FBGEMM and ModelOpt store FP8, and
compressed-tensors int8. Scales of activations and of the KV cache say how an engine may round
what it computes; the model is the same without them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

from puzzle_search.arch.variants import Shape
from puzzle_search.checkpoint.weights.mxfp4 import BLOCKS
from puzzle_search.errors import InputError
from puzzle_search.files import read_json

FLOATS = {"BF16", "F16", "F32", "F64"}
_EIGHT_BITS = {"F8_E4M3", "F8_E5M2", "I8"}
_SCALES = ("weight_scale", "weight_scale_inv")
_OF_ACTIVATIONS = {
    *("activation_scale", "input_scale", "output_scale"),
    *("k_scale", "q_scale", "v_scale"),
}

# Tensors that tell a quantisation, also where config.json does not; by the last word of a name.
_FOREIGN = {
    "SCB": "bitsandbytes (8 bits)",
    "W_q": "HQQ",
    "absmax": "bitsandbytes (4 bits)",
    "codebooks": "AQLM",
    "pre_quant_scale": "AWQ, by ModelOpt",
    "qweight": "GPTQ or AWQ",
    "weight_global_scale": "NVFP4",
    "weight_packed": "numbers of several to a word, by compressed-tensors",
    "weight_scale_2": "NVFP4, by ModelOpt",
    "weight_zero_point": "integers with a zero point",
}
_READ_FORMATS = {"dense", "float-quantized", "int-quantized", "naive-quantized"}
_READ_ALGORITHMS = {"FP8", "FP8_PER_CHANNEL_PER_TOKEN"}
_REMEDY = (
    "use the model in bf16, fp16 or fp32, in FP8 of compressed-tensors, fp8, fbgemm_fp8 or "
    "ModelOpt, or gpt-oss in MXFP4"
)


class StoredForm:
    """How the tensors of a checkpoint folder are stored.

    Args:
        folder: holds ``config.json``, perhaps ``hf_quant_config.json``.
        names: of all tensors.

    Raises:
        InputError: they are quantised in a way that is not read.
    """

    def __init__(self, folder: Path, names: Iterable[str]) -> None:
        self._folder = folder
        self._names = set(names)
        config = read_json(folder / "config.json", remedy="name a checkpoint folder")
        found = config.get("quantization_config") or {}
        if not isinstance(found, dict):
            raise InputError(
                f"{folder / 'config.json'}: quantization_config is not an object",
                remedy="download it again",
            )
        packed = any(name.endswith(BLOCKS) for name in self._names)
        if name := _refused_method(found, packed) or self._refused_algorithm():
            raise self._refused(name)
        # Shapes, too, tell packed numbers: a name gives the reason.
        for tensor in sorted(self._names):
            if (last := tensor.rpartition(".")[2]) in _FOREIGN:
                raise self._refused(f"{_FOREIGN[last]}, as {tensor} tells")
        self._blocks = set(_blocks(found))

    def _refused(self, name: str) -> InputError:
        return InputError(
            f"{self._folder}: the weights are quantised by {name}, which is not read",
            remedy=_REMEDY,
        )

    def _refused_algorithm(self) -> str | None:
        """What ModelOpt's own file names, where it is not read."""
        file = self._folder / "hf_quant_config.json"
        if not file.exists():
            return None
        section = read_json(file, remedy="download it again").get("quantization")
        algorithm = section.get("quant_algo") if isinstance(section, dict) else None
        known = algorithm is None or algorithm in _READ_ALGORITHMS
        return None if known else f"{algorithm}, by ModelOpt"

    def scale_of(self, name: str) -> str | None:
        """The name of the scales of a tensor."""
        module, _, last = name.rpartition(".")
        scales = (f"{module}.{scale}" for scale in _SCALES if last == "weight")
        return next((scale for scale in scales if scale in self._names), None)

    def scales(self, wanted: set[str]) -> set[str]:
        """Those tensors that are scales of wanted ones, of their activations or of the KV cache."""
        modules = {name.rpartition(".")[0] for name in wanted}
        modules |= {module.rpartition(".")[0] for module in modules}
        return {
            name
            for name in self._names
            for module, _, last in [name.rpartition(".")]
            if (last in _SCALES and f"{module}.weight" in wanted)
            or (last in _OF_ACTIVATIONS and module in modules)
        }

    def check_dtype(self, where: str, dtype: str, scale: str | None) -> None:
        """Check that a tensor is of floats without scales, or of 8 bits with them.

        Raises:
            InputError: it is not.
        """
        if dtype in FLOATS and scale is not None:
            raise InputError(
                f"{where} is stored as {dtype} and yet has scales, {scale}",
                remedy="use a checkpoint that was written whole",
            )
        if dtype in FLOATS or (dtype in _EIGHT_BITS and scale is not None):
            return
        reason = "of 8 bits without scales" if dtype in _EIGHT_BITS else "packed or not of floats"
        raise InputError(f"{where} is stored as {dtype}, {reason}: not read", remedy=_REMEDY)

    def grid(self, where: str, shape: Shape, scales: Shape) -> tuple[int, int]:
        """Rows and columns of a matrix that share one scale.

        Raises:
            InputError: there are more or fewer scales than rows or blocks.
        """
        rows, columns = shape if len(shape) == 2 else (1, math.prod(shape))
        if math.prod(scales) == 1:
            return rows, columns
        if scales in ((rows,), (rows, 1)):
            return 1, columns
        for high, wide in sorted(self._blocks):
            if scales == (-(-rows // high), -(-columns // wide)):
                return high, wide
        blocks = ", ".join(f"{high} x {wide}" for high, wide in sorted(self._blocks))
        raise InputError(
            f"{where} has shape {shape} and scales of shape {scales}, which is none for the whole, "
            f"none for each row, and none for each of config.json's blocks ({blocks or 'none'})",
            remedy="use a checkpoint that belongs to its config.json",
        )


def dequantised(stored: torch.Tensor, scales: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """The weights in fp32: every stored number times the scale of its cell of the grid."""
    high, wide = grid
    rows, columns = stored.shape
    weights = stored.to(torch.float32)
    table = scales.to(torch.float32).reshape(-(-rows // high), -(-columns // wide))
    if wide == columns:
        return weights.mul_(table.repeat_interleave(high, dim=0)[:rows])
    for number, row in enumerate(table):  # block by block: no table of the matrix's own size
        weights[number * high : (number + 1) * high] *= row.repeat_interleave(wide)[:columns]
    return weights


def _refused_method(found: dict[str, Any], packed: bool) -> str | None:
    """The name of what a ``quantization_config`` says, where it is not read.

    Args:
        found: the ``quantization_config``.
        packed: whether there are blocks of MXFP4 as gpt-oss stores them.
    """
    if not found:
        return None
    method = found.get("quant_method") or ("modelopt" if "quant_algo" in found else None)
    if method == "compressed-tensors":
        if found.get("transform_config"):
            return "compressed-tensors with transforms"
        formats = {found.get("format"), *(group.get("format") for group in _groups(found))}
        odd = formats - _READ_FORMATS - {None, "mixed-precision"}
        return f"{', '.join(sorted(map(str, odd)))}, by compressed-tensors" if odd else None
    if method == "modelopt":
        algorithm = found.get("quant_algo")
        return None if algorithm in _READ_ALGORITHMS else f"{algorithm}, by ModelOpt"
    if method == "mxfp4" and packed:
        return None
    return None if method in ("fbgemm_fp8", "fp8") else str(method)


def _groups(found: dict[str, Any]) -> Iterator[dict[str, Any]]:
    groups = found.get("config_groups")
    for group in groups.values() if isinstance(groups, dict) else ():
        if isinstance(group, dict):
            yield group


def _blocks(found: dict[str, Any]) -> Iterator[tuple[int, int]]:
    """Every size of block that a ``quantization_config`` names."""
    weights = (group.get("weights") for group in _groups(found))
    named = [one.get("block_structure") for one in weights if isinstance(one, dict)]
    for block in (found.get("weight_block_size"), *named):
        if block is None:
            continue
        whole = isinstance(block, list) and len(block) == 2
        if not whole or not all(type(size) is int and size > 0 for size in block):
            raise InputError(
                f"quantization_config: blocks of {block!r} are not rows and columns",
                remedy="use a checkpoint that belongs to its config.json",
            )
        yield block[0], block[1]
