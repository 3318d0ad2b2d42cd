"""Scores on their way: journaled one replacement a line, then rows of a score table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Self

from pydantic import ConfigDict, Field, model_validator

from puzzle_search import __version__
from puzzle_search.arch import Replacement
from puzzle_search.arch.variants import AttentionName, FfnName
from puzzle_search.files import Journal, NotNegative, Real, check_keys, resume_journal, value_hash
from puzzle_search.score.metrics import Estimate
from puzzle_search.solve import ScoreRow, ScoreTable
from puzzle_search.solve.problem.score_table import FORMAT


@dataclass(frozen=True, kw_only=True)
class Scores:
    """What scoring found.

    Attributes:
        rows: one a replacement and metric, in the order that was asked.
        base: the damage of the base itself, rows from its first to its last layer; none where the
            base is the parent.
        tokens: that were scored on.
        made_from: settings and content hashes that the scores depend on.
        parent_config: hash of the parent's config.
    """

    rows: list[ScoreRow]
    base: list[ScoreRow]
    tokens: int
    made_from: dict[str, Any]
    parent_config: str

    def table(self, parent: str, *, data: str) -> ScoreTable:
        """The score table of the replacements.

        Args:
            parent: its name.
            data: what the tokens are, for the table's sidecar.
        """
        sidecar: dict[str, Any] = {
            "format": FORMAT,
            "package_version": __version__,
            "parent": parent,
            "evidence": "measured",
            "data": f"{data}, {self.tokens} tokens, sha256 {self.made_from['tokens_sha256']}",
            "made_by": "puzzle-search score",
            "parent_config": self.parent_config,
        }
        notes = []
        if self.made_from["base"] is not None:
            notes.append(f"around the child of blocks {value_hash(self.made_from['base'])}")
        if self.made_from["kl_top_k"] is not None:
            notes.append(f"KL over {self.made_from['kl_top_k']} tokens and one bucket for the rest")
        return ScoreTable(self.rows, sidecar | ({"notes": "; ".join(notes)} if notes else {}))


@dataclass(frozen=True, kw_only=True)
class _Line:
    """One replacement in the journal; the base itself stands there as layer -1."""

    __pydantic_config__ = ConfigDict(extra="forbid", allow_inf_nan=False)

    first_layer: Annotated[int, Field(ge=-1, lt=2**31)]
    last_layer: Annotated[int, Field(ge=-1, lt=2**31)]
    attention: AttentionName
    ffn: FfnName
    value: dict[str, Real]
    stderr: dict[str, NotNegative | None]

    @model_validator(mode="after")
    def _is_base_or_replacement(self) -> Self:
        if self.last_layer < self.first_layer or -1 in {self.first_layer} ^ {self.last_layer}:
            raise ValueError(f"layers {self.first_layer} to {self.last_layer} are none")
        return self


class ScoreJournal:
    """Estimates by replacement, every one on disk before the next is measured.

    Args:
        journal: where they are appended.
        made_from: settings and content hashes that they depend on.

    Raises:
        InputError: the journal is of something else, or damaged.
    """

    def __init__(self, journal: Journal, made_from: dict[str, Any]) -> None:
        self._journal = journal
        self.found: dict[Replacement, dict[str, Estimate]] = {}
        lines: list[_Line] = resume_journal(journal, made_from, _Line)
        for line in lines:
            for part in (line.value, line.stderr):
                check_keys(part, f"{journal.path}, a score", required=set(made_from["metrics"]))
            replacement = (line.first_layer, line.last_layer, line.attention, line.ffn)
            self.found[replacement] = {
                name: Estimate(value, line.stderr[name]) for name, value in line.value.items()
            }

    def add(self, replacement: Replacement, estimates: dict[str, Estimate]) -> None:
        """Append one replacement's estimates."""
        self.found[replacement] = estimates
        first, last, attention, ffn = replacement
        line = _Line(
            first_layer=first,
            last_layer=last,
            attention=attention,
            ffn=ffn,
            value={name: estimate.value for name, estimate in estimates.items()},
            stderr={name: estimate.stderr for name, estimate in estimates.items()},
        )
        self._journal.append(asdict(line))

    def rows(self, replacements: Sequence[Replacement], *, tokens: int) -> list[ScoreRow]:
        """Rows of these replacements, by metric."""
        return [
            ScoreRow(
                first_layer=replacement[0],
                last_layer=replacement[1],
                attention=replacement[2],
                ffn=replacement[3],
                metric=metric,
                value=estimate.value,
                stderr=estimate.stderr,
                tokens=tokens,
            )
            for replacement in replacements
            for metric, estimate in self.found[replacement].items()
        ]
