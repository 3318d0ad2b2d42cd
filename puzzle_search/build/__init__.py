"""Materialise a child: parent, library and spec become a checkpoint folder."""

from puzzle_search.build.child import build_child

__all__ = ["build_child"]
