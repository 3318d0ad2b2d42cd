"""A GGUF file of a Llama-like model, turned into the Hugging Face folder that it once was."""

from puzzle_search.imports.gguf.convert import ImportedModel, import_gguf

__all__ = ["ImportedModel", "import_gguf"]
