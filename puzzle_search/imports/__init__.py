"""What other tools made: score and cost tables, and models in GGUF files."""

from puzzle_search.imports.gguf import ImportedModel, import_gguf
from puzzle_search.imports.nvlabs import import_nvlabs
from puzzle_search.imports.puzzletron import Measurement, import_puzzletron
from puzzle_search.imports.tables import ImportedTables

__all__ = [
    "ImportedModel",
    "ImportedTables",
    "Measurement",
    "import_gguf",
    "import_nvlabs",
    "import_puzzletron",
]
