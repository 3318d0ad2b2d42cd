"""What a profile needs to know of a serving engine, one class of it in each engine's file."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from puzzle_search.arch import ParentConfig, SearchSpace
from puzzle_search.cost import Dtype
from puzzle_search.engines import InstalledEngine
from puzzle_search.profile.engines.grid import EngineGrid
from puzzle_search.profile.engines.stacks import Skipped, Stack
from puzzle_search.profile.points.grid import ProfileGrid


class ServingEngine(ABC):
    """How an engine is profiled: its children, and what its workers are told.

    Attributes:
        installed: the engine.
        dtypes: precisions that it serves, the default first.
        chunk_tokens: most new tokens in a step, by default.
    """

    installed: InstalledEngine
    dtypes: Sequence[str]
    chunk_tokens: int

    @property
    @abstractmethod
    def side_by_side(self) -> bool:
        """Whether two children are in memory at once: a drift of the machine falls on both."""

    def grid(self, config: ParentConfig, sizes: ProfileGrid) -> EngineGrid:
        """Where to measure a parent's variants, of sizes as every profile names them."""
        return EngineGrid(
            batches=sizes.batches,
            prefill_tokens=sizes.prompts,
            decode_contexts=sizes.contexts,
            blocks=max(1, config.num_layers // 2),
            tp_degrees=sizes.tp,
            chunk_tokens=self.chunk_tokens,
        )

    @abstractmethod
    def stacks(
        self, config: ParentConfig, space: SearchSpace, tp_degrees: Sequence[int]
    ) -> tuple[list[Stack], Skipped]:
        """Every variant that the engine loads, and those that it does not, each with the reason.

        Raises:
            InputError: it cannot load any child of this parent, or serve a TP degree.
        """

    @abstractmethod
    def write(self, stack: Stack, blocks: int, dtype: Dtype, folder: Path) -> None:
        """Write a child of so many repeats into a folder, its weights random or left to the engine.

        Raises:
            MissingDependencyError: a package that writes the format is absent.
        """

    @abstractmethod
    def settings(self, dtype: Dtype, grid: EngineGrid) -> dict[str, Any]:
        """What a worker is told: how the engine is to run."""
