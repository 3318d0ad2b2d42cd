"""Real damage for the solver's rounds, measured by the scorer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from puzzle_search.arch import ArchitectureSpec, Replacement, canonical
from puzzle_search.checkpoint.block_library import BlockLibrary
from puzzle_search.files import Journal, value_hash
from puzzle_search.progress import Progress
from puzzle_search.score import Scores, score_replacements
from puzzle_search.solve.problem.score_table import parse_metric


class ScoringJudge:
    """Measures children and replacements around them, in a metric or a mix of metrics.

    Children are put together from parent and library while they are measured; no checkpoint is
    written. Every result is journaled, so that a killed search repeats no measurement.

    Args:
        parent: its checkpoint folder.
        library: trained variants.
        ids: (blocks, length) tokens to judge on.
        folder: of the journals.
        metric: name out of ``puzzle_search.score.METRICS``, or a sum such as ``kl + 0.1*lm_loss``.
        options: how to score: memory, executor, device and so on, as ``score_replacements``
            takes them.
    """

    def __init__(
        self,
        parent: str | Path,
        library: BlockLibrary,
        ids: torch.Tensor,
        folder: Path,
        *,
        metric: str = "kl",
        **options: Any,
    ) -> None:
        self._parent = parent
        self._library = library
        self._ids = ids
        self._folder = folder
        self._weights = parse_metric(metric)
        self._options = options

    def measure(self, spec: ArchitectureSpec) -> float:
        """Damage of a child."""
        rows = self._score(spec, [], "measure a child").base
        return sum(self._weights[row.metric] * row.value for row in rows)

    def around(
        self, spec: ArchitectureSpec, replacements: Sequence[Replacement]
    ) -> Mapping[Replacement, float]:
        """Damage of the child with one more block replaced, for each replacement."""
        asked = {canonical(named, self._library.config): named for named in replacements}
        damage = dict.fromkeys(replacements, 0.0)
        for row in self._score(spec, list(asked), "score around the child").rows:
            replacement = asked[row.first_layer, row.last_layer, row.attention, row.ffn]
            damage[replacement] += self._weights[row.metric] * row.value
        return damage

    def _score(
        self, spec: ArchitectureSpec, replacements: Sequence[Replacement], title: str
    ) -> Scores:
        key = value_hash([list(block.replacement) for block in spec.blocks])
        return score_replacements(
            self._parent,
            self._library,
            replacements,
            self._ids,
            journal=Journal(self._folder / f"around-{key}.jsonl"),
            base=spec,
            metrics=list(self._weights),
            progress=Progress(title),
            **self._options,
        )
