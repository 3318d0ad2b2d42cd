"""What a run begins with: the parent as a checkpoint folder, and text to learn from."""

from __future__ import annotations

from pathlib import Path

import torch

from puzzle_search.data import load_documents
from puzzle_search.data.documents import SELF, is_self
from puzzle_search.data.self_text import write_self_text
from puzzle_search.files import file_hash, value_hash
from puzzle_search.imports.gguf import import_gguf
from puzzle_search.pipeline.recipes.recipe import Recipe
from puzzle_search.pipeline.run_directory import RunDirectory


def parent_folder(recipe: Recipe, directory: RunDirectory) -> Path:
    """The parent's checkpoint folder, made of its GGUF file where the recipe names one.

    Raises:
        InputError: that file is damaged, or of no model that can be a parent.
    """
    file = Path(recipe.parent)
    if file.suffix != ".gguf":
        directory.drop("import")
        return file

    def work(folder: Path) -> None:
        import_gguf(file, folder / recipe.name)

    return directory.stage("import", [recipe.name, file_hash(file)], [], work) / recipe.name


def parent_key(parent: Path) -> list[list[str]]:
    """Names and hashes of the files that say what the parent is."""
    return [
        [file.name, file_hash(file)]
        for pattern in ("*.safetensors", "config.json", "tokenizer*")
        for file in sorted(parent.glob(pattern))
    ]


def text_source(recipe: Recipe, directory: RunDirectory, parent: Path, device: torch.device) -> str:
    """The text to learn from; written first where the parent itself is to write it."""
    source = recipe.data.source
    if not is_self(source):
        directory.drop("text")
        return source

    def work(folder: Path) -> None:
        write_self_text(source, parent, folder / SELF, device=device)

    return str(directory.stage("text", [parent_key(parent), source], [], work) / SELF)


def content_hash(source: str) -> str:
    """Hash of a source's documents."""
    return value_hash([[d.name, d.text, d.messages] for d in load_documents(source)])
