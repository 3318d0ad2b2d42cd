"""How sure an answer is: what of it holds when scores are drawn within their standard errors."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from puzzle_search.arch import ArchitectureSpec, BlockChoice, ParentConfig, subblock_parameters
from puzzle_search.choices import Backend
from puzzle_search.errors import InfeasibleError, InputError
from puzzle_search.solve.problem.items import Selection
from puzzle_search.solve.problem.problem import Problem
from puzzle_search.solve.problem.score_table import ScoreRow, ScoreTable
from puzzle_search.solve.search.search import DEFAULT_BACKEND, search
from puzzle_search.solve.search.solution import Solution

# A layer whose choice holds in this share of the draws is sure of it.
_SURE = 0.95


@dataclass(frozen=True, kw_only=True)
class Certainty:
    """What of an answer holds over draws of the scores.

    Attributes:
        draws: how often the scores were drawn and the question solved again.
        unanswered: draws in which nothing was found within the limits; not counted below.
        held: (layers of the parent,), share of the draws whose answer has the same block there.
        moved_parameters: parameters of the answer that a draw's answer does without, on average;
            where the limits bind it spends about as many elsewhere.
        parameters: of the answer's blocks.
    """

    draws: int
    unanswered: int
    held: tuple[float, ...]
    moved_parameters: float
    parameters: int

    @property
    def moved_layers(self) -> float:
        """Layers whose block is another one, on average over the draws."""
        return sum(1 - share for share in self.held)

    @property
    def sure_layers(self) -> int:
        """Layers whose block is the same in nearly all draws."""
        return sum(share >= _SURE for share in self.held)

    def as_dict(self) -> dict[str, Any]:
        """The certainty as results show it."""
        return {
            "draws": self.draws,
            "unanswered": self.unanswered,
            "sure_layers": self.sure_layers,
            "moved_layers": self.moved_layers,
            "moved_parameters": self.moved_parameters,
            "held": list(self.held),
        }

    def __str__(self) -> str:
        layers, part = len(self.held), self.moved_parameters / self.parameters
        without = f" ({self.unanswered} without an answer)" if self.unanswered else ""
        return (
            f"over {self.draws} draws of the scores within their standard errors{without}, "
            f"{self.sure_layers} of {layers} layers keep their choice in {_SURE:.0%} of them; "
            f"on average {self.moved_layers:.1f} layers and {part:.1%} of the parameters move"
        )


def certainty(
    solution: Solution,
    config: ParentConfig,
    scores: ScoreTable,
    pose: Callable[[ScoreTable], Problem],
    *,
    draws: int = 20,
    max_seconds: float = 60.0,
    backend: Backend = DEFAULT_BACKEND,
    workers: int | None = None,
) -> Certainty:
    """Solve a question again with scores drawn within their standard errors.

    Args:
        solution: the answer that is judged.
        config: the parent.
        scores: the table that it was found by.
        pose: the question with another table; it is sent to worker processes.
        draws: how often; the draws are the same each time.
        max_seconds: time limit of each search.
        backend: solver of the exact step.
        workers: processes; by default one for each processor.

    Raises:
        InputError: no positive number of draws, or the table has no standard errors.
    """
    if draws < 1:
        raise InputError(f"{draws} draws tell nothing", remedy="draw at least once, 20 for a start")
    if any(row.stderr is None for row in scores.rows) or not any(row.stderr for row in scores.rows):
        raise InputError(
            "the score table lacks standard errors, so nothing is known of its certainty",
            remedy="score again with 'puzzle-search score', or fill in the column stderr",
        )
    with ProcessPoolExecutor(
        min(draws, workers or os.cpu_count() or 1),
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_Draws.prepare,
        initargs=(pose, scores, solution.selection, max_seconds, backend),
    ) as pool:
        specs = [spec for spec in pool.map(_Draws.solve, range(draws)) if spec is not None]
    return compare(solution.spec, specs, config, draws)


def compare(
    answer: ArchitectureSpec, drawn: list[ArchitectureSpec], config: ParentConfig, draws: int
) -> Certainty:
    """What of an answer is in the answers of draws; fewer than ``draws`` where some had none."""
    held, moved = np.zeros(config.num_layers), 0.0
    for spec in drawn:
        same = {block.replacement for block in spec.blocks}
        spent = _parameters(spec, config)
        for block in answer.blocks:
            layers = list(block.layers)
            if block.replacement in same:
                held[layers] += 1
                continue
            own = _block_parameters(block, config)
            moved += max(0.0, own - float(spent[layers].sum()))
    answered = max(1, len(drawn))
    return Certainty(
        draws=draws,
        unanswered=draws - len(drawn),
        held=tuple((held / answered).tolist()),
        moved_parameters=moved / answered,
        parameters=sum(_block_parameters(block, config) for block in answer.blocks),
    )


def _parameters(spec: ArchitectureSpec, config: ParentConfig) -> np.ndarray:
    """(layers of the parent,), a block in place of several counts in equal parts."""
    spent = np.zeros(config.num_layers)
    for block in spec.blocks:
        spent[list(block.layers)] = _block_parameters(block, config) / len(block.layers)
    return spent


def _block_parameters(block: BlockChoice, config: ParentConfig) -> int:
    variants = block.attention_variant, block.ffn_variant
    return sum(subblock_parameters(variant, config) for variant in variants)


def drawn(scores: ScoreTable, number: int) -> ScoreTable:
    """A table with every score drawn by its standard error.

    Damage above zero is drawn log-normally with the score as its mean, so that none turns into a
    gain; other values normally. Rows that replace the same part of the same layers err together:
    they were judged on the same text, and one is mostly a smaller change than the other.
    """
    generator, errors = np.random.default_rng(number), dict[tuple[int, int, bool, bool], float]()
    rows = []
    for row in scores.rows:
        part = (row.first_layer, row.last_layer, bool(row.attention), bool(row.ffn))
        if part not in errors:
            errors[part] = float(generator.standard_normal())
        rows.append(replace(row, value=_drawn(row, errors[part])))
    return ScoreTable(rows, scores.sidecar)


def _drawn(row: ScoreRow, error: float) -> float:
    assert row.stderr is not None
    if row.value <= 0:
        return row.value + row.stderr * error
    variance = float(np.log1p((row.stderr / row.value) ** 2))
    return row.value * float(np.exp(variance**0.5 * error - variance / 2))


class _Draws:
    """What a worker process solves; the question is sent to it once."""

    _solve: Callable[[int], ArchitectureSpec | None]

    @classmethod
    def prepare(
        cls,
        pose: Callable[[ScoreTable], Problem],
        scores: ScoreTable,
        start: Selection,
        max_seconds: float,
        backend: Backend,
    ) -> None:
        """Keep the question in the worker."""

        def solve(number: int) -> ArchitectureSpec | None:
            problem = pose(drawn(scores, number))
            try:
                found = search(problem, max_seconds=max_seconds, backend=backend, start=[start])
            except InfeasibleError:  # none found in time
                return None
            return None if found is None else found.spec

        cls._solve = staticmethod(solve)

    @classmethod
    def solve(cls, number: int) -> ArchitectureSpec | None:
        """The answer to one draw, if there is one within the limits."""
        return cls._solve(number)
