"""Score and cost tables that other tools measured, read into this package's own formats."""

from puzzle_search.imports.nvlabs import import_nvlabs
from puzzle_search.imports.puzzletron import Measurement, import_puzzletron
from puzzle_search.imports.tables import ImportedTables

__all__ = ["ImportedTables", "Measurement", "import_nvlabs", "import_puzzletron"]
