"""The block library: every variant initialised from the parent, then distilled block by block."""

from puzzle_search.library.bld import BldSettings
from puzzle_search.library.build import build_library

__all__ = ["BldSettings", "build_library"]
