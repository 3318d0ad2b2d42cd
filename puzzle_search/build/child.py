"""Assemble a child checkpoint, one subblock in memory at a time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

from puzzle_search.arch import ArchitectureSpec, ParentConfig
from puzzle_search.checkpoint import (
    CheckpointReader,
    check_replaceable,
    stored_tensors,
    write_child,
)
from puzzle_search.checkpoint.block_library import BlockLibrary
from puzzle_search.model.dtypes import torch_dtype


def build_child(
    parent: str | Path,
    library: str | Path,
    spec: ArchitectureSpec,
    out: str | Path,
    *,
    dtype: str = "bf16",
) -> Path:
    """Write the child as a Hugging Face checkpoint folder, whole or not at all.

    Args:
        parent: checkpoint folder of the parent.
        library: complete block library of that parent.
        spec: the architecture.
        out: folder to write; an existing child there is replaced.
        dtype: ``bf16`` or ``fp32``.

    Raises:
        InputError: the spec does not fit, the library lacks a variant, a file is damaged, the
            dtype is another, or ``out`` holds something else than a child.
    """
    torch_dtype(dtype)
    check_replaceable(Path(out))
    config = ParentConfig.from_file(parent)
    spec.check_fits(config)
    reader = CheckpointReader(parent)
    blocks = BlockLibrary.from_folder(library, config, reader)

    def tensors() -> Iterator[tuple[str, torch.Tensor]]:
        yield from reader.outside(config).items()
        for index, block in enumerate(spec.blocks):
            first, last = block.layers[0], block.layers[-1]
            parts = blocks.block(first, last, block.attention, block.ffn)
            for subblock, named in parts.items():
                yield from stored_tensors(subblock, index, named, config)

    return write_child(Path(out), config, spec, tensors(), dtype=dtype, tokenizer_from=parent)
