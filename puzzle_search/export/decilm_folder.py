"""Write a planned folder tensor by tensor, read it back, and give it its name."""

from __future__ import annotations

from pathlib import Path

import torch

from puzzle_search.checkpoint import CheckpointWriter
from puzzle_search.checkpoint.child_folder import copy_tokenizer, write_child_config
from puzzle_search.checkpoint.reader import open_safetensors
from puzzle_search.errors import InputError
from puzzle_search.export.decilm_plan import TYPES
from puzzle_search.export.plan import ExportPlan
from puzzle_search.files import folder_written_whole

_SHARD_BYTES = 2**30  # a shard is held in memory


def write_folder(plan: ExportPlan, model: Path, out: Path) -> None:
    """Write the folder, whole or not at all; the same plan gives the same bytes.

    Args:
        plan: of any engine that reads folders.
        model: folder whose tokenizer is copied.
        out: folder to write.

    Raises:
        InputError: something is there, a tensor cannot be read, the disk is full, or what was read
            back differs.
    """
    if out.exists():
        raise InputError(f"{out} exists", remedy="name another folder, or remove this one")
    with folder_written_whole(out) as folder:
        writer = CheckpointWriter(folder, shard_bytes=_SHARD_BYTES)
        sums = []
        for planned in plan.tensors:
            tensor = planned.make().to(TYPES[planned.dtype])
            if not bool(torch.isfinite(tensor).all()):
                raise InputError(
                    f"{planned.source} holds numbers that are not finite in {planned.dtype}",
                    remedy="build the child again from sound weights, or take bf16 or f32",
                )
            sums.append(_sum(tensor))
            writer.add(planned.name, tensor)
        writer.finish()
        write_child_config(folder, plan.header)
        copy_tokenizer(model, folder)
        # Not as one of this package's checkpoints: engines have names of their own.
        files = map(open_safetensors, folder.glob("*.safetensors"))
        stored = {name: file for file in files for name in file.keys()}  # noqa: SIM118
        for planned, expected in zip(plan.tensors, sums, strict=True):
            if _sum(stored[planned.name].get_tensor(planned.name)) != expected:
                raise InputError(
                    f"{out}: tensor {planned.name} differs from what was written",
                    remedy="check that disk, and export again",
                )


def _sum(tensor: torch.Tensor) -> int:
    """A sum over the bits of all numbers."""
    whole = {2: torch.int16, 4: torch.int32}[tensor.element_size()]
    # numpy's sum, because torch's would hold a copy of the tensor in int64.
    return int(tensor.contiguous().view(whole).numpy().sum(dtype="int64"))
