"""Replace-1-block scores: what each variant costs in quality."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import yaml
from pydantic import model_validator

from puzzle_search.arch import ParentConfig, parse_variant
from puzzle_search.errors import InputError
from puzzle_search.files import (
    Count,
    NotNegative,
    Real,
    Record,
    Row,
    check_record,
    read_rows,
    read_yaml,
    rows_as_csv,
    value_hash,
    write_text,
)

FORMAT = "puzzle-search.scores/1"


class _Sidecar(Record):
    """What whoever made a table knows, and what only this package knows of its own tables."""

    format: str
    parent: str
    evidence: str
    data: Any
    package_version: Any = None
    made_by: Any = None
    notes: Any = None
    parent_config: Any = None


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoreRow(Row):
    """Damage of one replacement; an empty ``attention`` or ``ffn`` means the parent's own.

    A ``stderr`` of None is not known: nobody told, or there was one block of tokens alone.
    """

    first_layer: Count
    last_layer: Count
    attention: str
    ffn: str
    metric: str
    value: Real
    stderr: NotNegative | None = None
    tokens: Count

    @model_validator(mode="after")
    def _replaces_something(self) -> Self:
        if self.first_layer > self.last_layer:
            raise ValueError("first_layer is after last_layer")
        if self.attention:
            parse_variant("attention", self.attention)
        if self.ffn:
            parse_variant("ffn", self.ffn)
        return self


_Key = tuple[int, int, str, str]


class ScoreTable:
    """All rows of one metric, lower is better.

    Raises:
        InputError: two rows for the same replacement.
    """

    def __init__(self, rows: Iterable[ScoreRow], sidecar: dict[str, Any]) -> None:
        self.rows = list(rows)
        self.sidecar = sidecar
        self._values: dict[str, dict[_Key, float]] = {}
        for number, row in enumerate(self.rows, start=2):
            metric = self._values.setdefault(row.metric, {})
            key = (row.first_layer, row.last_layer, row.attention, row.ffn)
            if key in metric:
                raise InputError(
                    f"score table, row {number}: {_layers(*key[:2])}, "
                    f"attention {row.attention!r}, ffn {row.ffn!r}, {row.metric} stands twice",
                    remedy="drop one of the rows",
                )
            metric[key] = row.value

    @property
    def evidence(self) -> str:
        """Where the scores come from."""
        return str(self.sidecar["evidence"])

    @classmethod
    def from_file(cls, path: str | Path) -> ScoreTable:
        """Read a CSV and its ``.yaml`` sidecar.

        Raises:
            InputError: unknown columns, NaN, unknown variants, duplicates; names file and row.
        """
        file = Path(path)
        sidecar_file = file.with_suffix(".yaml")
        rows = read_rows(
            file, ScoreRow, remedy="correct it, or name a table written by 'puzzle-search score'"
        )
        sidecar = read_yaml(sidecar_file, format=FORMAT)
        check_record(_Sidecar, sidecar, sidecar_file)
        try:
            return cls(rows, sidecar)
        except InputError as error:
            raise InputError(f"{file}: {error.message}", remedy=error.remedy) from error

    def check_parent(self, config: ParentConfig, where: str | Path) -> None:
        """Check that the scores are of this parent: by its name, or by what its config says.

        Raises:
            InputError: they are of another, as far as the sidecar tells.
        """
        same_config = self.sidecar.get("parent_config") == value_hash(dict(config.raw))
        if self.sidecar["parent"] != config.name and not same_config:
            raise InputError(
                f"{where} holds scores of {self.sidecar['parent']}, not of {config.name}",
                remedy="name the scores of this model; if these are, correct parent in the .yaml",
            )

    def write(self, path: str | Path) -> None:
        """Write the CSV and its sidecar.

        Raises:
            InputError: the sidecar would take the place of the table.
        """
        file = Path(path)
        check_table_path(file)
        write_text(file, rows_as_csv(ScoreRow, self.rows))
        write_text(file.with_suffix(".yaml"), yaml.safe_dump(self.sidecar, sort_keys=False))

    def runs(self) -> list[tuple[int, int, str, str]]:
        """Replacements of several layers by one block: first and last layer, attention, FFN.

        An empty ``attention`` or ``ffn`` means the parent's own.
        """
        return sorted(
            {key for values in self._values.values() for key in values if key[0] < key[1]}
        )

    def last_layer(self) -> int:
        """The last layer that a row speaks of; -1 without rows."""
        return max((row.last_layer for row in self.rows), default=-1)

    def run_damage(self, run: tuple[int, int, str, str], weights: Mapping[str, float]) -> float:
        """Damage of one block in place of several layers, in a weighted sum of metrics.

        Raises:
            InputError: the table lacks it in one of the metrics.
        """
        total = 0.0
        for metric, weight in weights.items():
            value = self._metric(metric).get(run)
            if value is None:
                raise _lacks(f"{_layers(*run[:2])}, {run[2:]}, {metric}")
            total += weight * value
        return total

    def block_damage(
        self,
        layer: int,
        attention: str,
        ffn: str,
        config: ParentConfig,
        weights: Mapping[str, float],
    ) -> float:
        """Damage of one block: its composed row where there is one, else the sum of the singles.

        Args:
            layer: that it replaces.
            attention: variant.
            ffn: variant.
            config: the parent, whose own block does no damage.
            weights: of the metrics that are added up (`parse_metric`).

        Raises:
            InputError: the table lacks the rows or a metric.
        """
        attention = "" if attention == config.own("attention", layer) else attention
        ffn = "" if ffn == config.ffn else ffn
        if not attention and not ffn:
            return 0.0
        total = 0.0
        for metric, weight in weights.items():
            values = self._metric(metric)
            composed = _value(values, layer, attention, ffn, config)
            if composed is not None:
                total += weight * composed
                continue
            for single in ((attention, ""), ("", ffn)):
                if single == ("", ""):
                    continue
                value = _value(values, layer, *single, config)
                if value is None:
                    raise _lacks(f"layer {layer}, {single[0] or single[1]}")
                total += weight * value
        return total

    def _metric(self, name: str) -> dict[_Key, float]:
        if name not in self._values:
            raise InputError(
                f"the score table has no metric {name!r}",
                remedy=f"use {', '.join(self._values)}, or a sum such as kl + 0.1*lm_loss",
            )
        return self._values[name]


def check_table_path(path: Path) -> None:
    """Check that a table and its ``.yaml`` sidecar are two files.

    Raises:
        InputError: they are one.
    """
    if path.with_suffix(".yaml") == path:
        raise InputError(
            f"{path}: that is where the sidecar of a score table goes",
            remedy=f"name the table {path.with_suffix('.csv')}",
        )


def parse_metric(text: str) -> dict[str, float]:
    """Weights by metric, from ``kl`` or a sum such as ``kl + 0.1*lm_loss``.

    Raises:
        InputError: the text has another form, or names a metric twice.
    """
    weights: dict[str, float] = {}
    for term in text.split("+"):
        match = re.fullmatch(r"\s*(?:([0-9.]+(?:[eE]-?[0-9]+)?)\s*\*\s*)?([A-Za-z_]\w*)\s*", term)
        try:
            weight = float(match[1] or 1) if match else math.nan
        except ValueError:
            weight = math.nan
        if match is None or not math.isfinite(weight) or match[2] in weights:
            raise InputError(
                f"metric {text!r} is neither a metric nor a weighted sum of metrics",
                remedy="write kl, or a sum such as kl + 0.1*lm_loss",
            )
        weights[match[2]] = weight
    return weights


def _value(
    values: Mapping[_Key, float], layer: int, attention: str, ffn: str, config: ParentConfig
) -> float | None:
    """A row's value, whether it leaves the parent's own variants empty or names them."""
    for named_attention in (attention, attention or config.own("attention", layer)):
        for named_ffn in (ffn, ffn or config.ffn):
            found = values.get((layer, layer, named_attention, named_ffn))
            if found is not None:
                return found
    return None


def _lacks(what: str) -> InputError:
    return InputError(
        f"the score table lacks {what}",
        remedy="score this variant, or drop it from the search space",
    )


def _layers(first: int, last: int) -> str:
    return f"layer {first}" if first == last else f"layers {first}-{last}"
