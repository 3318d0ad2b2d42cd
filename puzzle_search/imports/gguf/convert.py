"""From a GGUF file to a Hugging Face folder, whole or not at all."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from puzzle_search import __version__
from puzzle_search.arch import ParentConfig
from puzzle_search.errors import InputError
from puzzle_search.files import file_hash, folder_written_whole
from puzzle_search.imports.gguf.config import model_config
from puzzle_search.imports.gguf.safetensors_file import StoredDtype, torch_name, write_safetensors
from puzzle_search.imports.gguf.source import GgufSource
from puzzle_search.imports.gguf.tensors import plan_tensors, stored_values
from puzzle_search.packages import installed

_TEMPLATE = "chat_template.jinja"
_FILES = {
    _TEMPLATE,
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
}
_SAMPLING = {"temp": "temperature", "top_p": "top_p", "min_p": "min_p"}


@dataclass(frozen=True, kw_only=True)
class ImportedModel:
    """What was made of a GGUF file.

    Attributes:
        folder: where it lies.
        config: its configuration, as every command will read it.
        weight_bytes: size of all tensors as written.
        types: how many tensors of each GGUF type there were.
        not_taken: keys of the file's tokenizer that the folder has no place for.
    """

    folder: Path
    config: ParentConfig
    weight_bytes: int
    types: dict[str, int]
    not_taken: tuple[str, ...]


def import_gguf(file: str | Path, out: str | Path, *, dtype: StoredDtype = "bf16") -> ImportedModel:
    """Turn a GGUF file into a Hugging Face folder; an earlier import there is replaced.

    Raises:
        InputError: the file cannot be read or kept in full, or ``out`` holds other files.
        MissingDependencyError: the package ``gguf`` or ``tokenizers`` is not installed.
    """
    with installed():  # the other imports of this package do without `tokenizers`
        from puzzle_search.imports.gguf.tokenizer import GgufTokenizer
    folder = Path(out)
    if folder.exists() and (
        not folder.is_dir() or {file.name for file in folder.iterdir()} - _FILES
    ):
        raise InputError(
            f"{folder} exists and holds other files than an import",
            remedy="name a new folder, or remove this one",
        )
    source = GgufSource(file)
    raw = model_config(source, dtype=torch_name(dtype))
    config = ParentConfig.from_dict(raw, name=folder.resolve().name, where=str(source.file))
    plan = plan_tensors(source, config)
    tokenizer = GgufTokenizer.read(source, config.vocab_size)
    ids = tokenizer.special_ids
    with folder_written_whole(folder) as temporary:
        written = write_safetensors(
            temporary / "model.safetensors",
            {name: planned.shape for name, planned in plan.items()},
            stored_values(source, plan, dtype),
            dtype=dtype,
            metadata={
                "format": "pt",
                "made_by": f"puzzle-search {__version__}",
                "source": source.file.name,
                "source_sha256": file_hash(source.file),
            },
        )
        _write_json(temporary / "config.json", raw | ids)
        generation = ids | {"eos_token_id": tokenizer.stop_ids} | _sampling(source)
        _write_json(temporary / "generation_config.json", generation)
        tokenizer.build().save(str(temporary / "tokenizer.json"))
        _write_json(
            temporary / "tokenizer_config.json",
            tokenizer.settings(config.max_position_embeddings),
        )
        if tokenizer.chat_template:
            (temporary / _TEMPLATE).write_text(tokenizer.chat_template, encoding="utf-8")
    types = [source.tensors[planned.stored].type.name for planned in plan.values()]
    return ImportedModel(
        folder=folder,
        config=config,
        weight_bytes=written,
        types={name: types.count(name) for name in sorted(set(types))},
        not_taken=tokenizer.not_taken,
    )


def _sampling(source: GgufSource) -> dict[str, Any]:
    """How the model's authors advise to sample, where the file says."""
    known = source.keys("general.sampling.")
    advised: dict[str, Any] = {
        name: source.get(f"general.sampling.{key}", float)
        for key, name in _SAMPLING.items()
        if f"general.sampling.{key}" in known
    }
    if "general.sampling.top_k" in known:
        advised["top_k"] = source.get("general.sampling.top_k", int)
    return advised | {"do_sample": True} if advised else {}


def _write_json(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
