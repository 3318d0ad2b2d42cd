"""Write a child's checkpoint folder, whole or not at all."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from puzzle_search.arch import ArchitectureSpec, ParentConfig, Subblock
from puzzle_search.checkpoint.child import child_config
from puzzle_search.checkpoint.families import Stored, stored_elsewhere
from puzzle_search.checkpoint.heterogeneous import GPT_OSS_PUZZLE
from puzzle_search.checkpoint.names import EMBEDDING, FINAL_NORM, HEAD, all_names, stored_parts
from puzzle_search.checkpoint.writer import CheckpointWriter
from puzzle_search.errors import InputError
from puzzle_search.files import folder_written_whole
from puzzle_search.model.dtypes import torch_dtype

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
_OUTSIDE = {"embedding.weight": EMBEDDING, "norm.weight": FINAL_NORM, "head.weight": HEAD}


def check_replaceable(target: Path) -> None:
    """Check that a child may be written to a folder.

    Raises:
        InputError: something else than a child is there.
    """
    if target.exists() and not (target / "architecture.yaml").exists():
        raise InputError(
            f"{target} exists and is not a child of this package",
            remedy="name another folder, or remove this one",
        )


def write_child_config(folder: Path, config: dict[str, Any]) -> None:
    """Write a child's ``config.json`` and the modules of the classes that it names."""
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    for module in {name.partition(".")[0] for name in config.get("auto_map", {}).values()}:
        shutil.copyfile(Path(__file__).with_name(f"{module}.py"), folder / f"{module}.py")


def write_child(
    target: Path,
    config: ParentConfig,
    spec: ArchitectureSpec,
    tensors: Iterable[tuple[str, torch.Tensor]],
    *,
    dtype: str,
    tokenizer_from: str | Path,
    records: dict[str, str] | None = None,
) -> Path:
    """Write a child as a Hugging Face checkpoint folder; an existing child there is replaced.

    Args:
        target: the folder.
        config: the parent's configuration.
        spec: the architecture.
        tensors: all tensors by checkpoint name; taken one at a time.
        dtype: ``bf16`` or ``fp32``.
        tokenizer_from: folder whose tokenizer files are copied.
        records: texts of further files by name.

    Raises:
        InputError: the dtype is another, or ``target`` holds something else than a child.
    """
    written = torch_dtype(dtype)
    check_replaceable(target)
    described = child_config(config, spec, dtype=str(written).removeprefix("torch."))
    elsewhere: dict[str, Stored] = {}
    if described["model_type"] == GPT_OSS_PUZZLE:
        elsewhere = stored_elsewhere(config.family, all_names(config, spec))
    with folder_written_whole(target) as folder:
        writer = CheckpointWriter(folder)
        for name, tensor in tensors:
            stored = elsewhere.get(name, Stored(name=name, shape=tuple(tensor.shape)))
            writer.add(stored.name, stored.give(tensor.to(written)))
        writer.finish()
        write_child_config(folder, described)
        spec.write(folder / "architecture.yaml")
        for name, text in (records or {}).items():
            (folder / name).write_text(text)
        copy_tokenizer(tokenizer_from, folder)
    return target


def copy_tokenizer(source: str | Path, folder: Path) -> None:
    """Copy the tokenizer files that a checkpoint folder holds."""
    for name in _TOKENIZER_FILES:
        if (Path(source) / name).exists():
            shutil.copyfile(Path(source) / name, folder / name)


def stored_tensors(
    subblock: Subblock, block: int, tensors: Mapping[str, torch.Tensor], config: ParentConfig
) -> Iterator[tuple[str, torch.Tensor]]:
    """A subblock's tensors, by local name, as a checkpoint has them."""
    for local, tensor in tensors.items():
        for part in stored_parts(subblock, block, local, tuple(tensor.shape), config):
            yield part.name, tensor[part.place]


def decoder_tensors(
    weights: Mapping[str, torch.Tensor], config: ParentConfig
) -> Iterator[tuple[str, torch.Tensor]]:
    """A decoder's weights, by name such as ``blocks.3.ffn.up_proj.weight``, as a checkpoint's."""
    for parameter, tensor in weights.items():
        if parameter in _OUTSIDE:
            yield _OUTSIDE[parameter], tensor
            continue
        _, block, subblock, local = parameter.split(".", 3)
        name: Subblock = "attention" if subblock == "attention" else "ffn"
        yield from stored_tensors(name, int(block), {local: tensor}, config)
