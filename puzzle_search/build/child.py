"""Assemble a child checkpoint, one subblock in memory at a time."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch

from puzzle_search.arch import ArchitectureSpec, ParentConfig
from puzzle_search.checkpoint import CheckpointReader, CheckpointWriter, child_config
from puzzle_search.checkpoint.block_library import BlockLibrary
from puzzle_search.checkpoint.names import checkpoint_name
from puzzle_search.errors import InputError
from puzzle_search.files import folder_written_whole

_TOKENIZER_FILES = (
    "chat_template.jinja",
    "generation_config.json",
    "merges.txt",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
)
_DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


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
    if dtype not in _DTYPES:
        raise InputError(
            f"dtype {dtype!r} cannot be written", remedy=f"use one of {', '.join(_DTYPES)}"
        )
    number_type = _DTYPES[dtype]
    target = Path(out)
    _check_replaceable(target)
    config = ParentConfig.from_file(parent)
    spec.check_fits(config)
    reader = CheckpointReader(parent)
    blocks = BlockLibrary.from_folder(library, config, reader)
    described = child_config(config, spec, dtype=str(number_type).removeprefix("torch."))
    with folder_written_whole(target) as folder:
        writer = CheckpointWriter(folder)
        for name, tensor in reader.outside(config).items():
            writer.add(name, tensor.to(number_type))
        for index, block in enumerate(spec.blocks):
            first, last = block.layers[0], block.layers[-1]
            parts = blocks.block(first, last, block.attention, block.ffn)
            for subblock, tensors in parts.items():
                for local, tensor in tensors.items():
                    name = checkpoint_name(subblock, index, local)
                    writer.add(name, tensor.to(number_type))
        writer.finish()
        (folder / "config.json").write_text(json.dumps(described, indent=2) + "\n")
        spec.write(folder / "architecture.yaml")
        for name in _TOKENIZER_FILES:
            if (Path(parent) / name).exists():
                shutil.copyfile(Path(parent) / name, folder / name)
    return target


def _check_replaceable(target: Path) -> None:
    if target.exists() and not (target / "architecture.yaml").exists():
        raise InputError(
            f"{target} exists and is not a child of this package",
            remedy="name another folder, or remove this one",
        )
