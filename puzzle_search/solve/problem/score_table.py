"""Replace-1-block scores: what each variant costs in quality."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from puzzle_search.arch import ParentConfig, Subblock, parse_variant
from puzzle_search.errors import InputError
from puzzle_search.files import check_keys, read_csv_rows, read_yaml, value_hash, write_text

FORMAT = "puzzle-search.scores/1"
# What whoever made a table knows; what only this package knows of its own tables comes besides.
_SIDECAR_KEYS = {"format", "parent", "evidence", "data"}
_OWN_KEYS = {"package_version", "made_by", "notes", "parent_config"}


@dataclass(frozen=True, kw_only=True)
class ScoreRow:
    """Damage of one replacement; an empty ``attention`` or ``ffn`` means the parent's own.

    A ``stderr`` of None is not known: nobody told, or there was one block of tokens alone.
    """

    first_layer: int
    last_layer: int
    attention: str
    ffn: str
    metric: str
    value: float
    stderr: float | None
    tokens: int


_COLUMNS = [f.name for f in fields(ScoreRow)]
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
        read = read_csv_rows(
            file, _COLUMNS, remedy="name a score table (CSV) written by 'puzzle-search score'"
        )
        sidecar = read_yaml(sidecar_file, format=FORMAT)
        check_keys(sidecar, sidecar_file, required=_SIDECAR_KEYS, optional=_OWN_KEYS)
        rows = [_row(row, f"{file}, row {n}") for n, row in enumerate(read, start=2)]
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
        out = io.StringIO()
        writer = csv.DictWriter(out, _COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(row) for row in self.rows)
        write_text(file, out.getvalue())
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
        attention = "" if attention == config.attention else attention
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
    for named_attention in (attention, attention or config.attention):
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


def _row(row: dict[str, str], where: str) -> ScoreRow:
    if None in row or None in row.values():
        raise InputError(f"{where}: wrong number of columns", remedy="correct the row")
    numbers: dict[str, float] = {}
    for key in ("first_layer", "last_layer", "tokens", "value", "stderr"):
        if key == "stderr" and not row[key]:
            continue
        try:
            numbers[key] = float(row[key])
        except ValueError:
            numbers[key] = math.nan
        whole = key not in {"value", "stderr"}
        if not math.isfinite(numbers[key]) or (
            whole and (numbers[key] < 0 or not numbers[key].is_integer())
        ):
            raise InputError(
                f"{where}: {key} is {row[key]!r}, not a {'whole ' if whole else ''}number",
                remedy="score this replacement again, or correct the row",
            )
    if numbers["first_layer"] > numbers["last_layer"]:
        raise InputError(
            f"{where}: first_layer is after last_layer", remedy="swap them, or correct the row"
        )
    try:
        subblocks: tuple[Subblock, Subblock] = ("attention", "ffn")
        for subblock in subblocks:
            if row[subblock]:
                parse_variant(subblock, row[subblock])
    except InputError as error:
        raise InputError(f"{where}: {error.message}", remedy=error.remedy) from error
    return ScoreRow(
        first_layer=int(numbers["first_layer"]),
        last_layer=int(numbers["last_layer"]),
        attention=row["attention"],
        ffn=row["ffn"],
        metric=row["metric"],
        value=numbers["value"],
        stderr=numbers.get("stderr"),
        tokens=int(numbers["tokens"]),
    )
