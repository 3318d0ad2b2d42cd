"""Replace-1-block scores: what each variant costs in quality."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from puzzle_search.arch import ParentConfig, SearchSpace, Subblock, parse_variant
from puzzle_search.errors import InputError
from puzzle_search.files import check_keys, read_text, read_yaml, write_text

FORMAT = "puzzle-search.scores/1"
_SIDECAR_KEYS = {"format", "package_version", "parent", "evidence", "data", "made_by"}


@dataclass(frozen=True, kw_only=True)
class ScoreRow:
    """Damage of one replacement; an empty ``attention`` or ``ffn`` means the parent's own."""

    first_layer: int
    last_layer: int
    attention: str
    ffn: str
    metric: str
    value: float
    stderr: float
    tokens: int


_COLUMNS = [f.name for f in fields(ScoreRow)]
_Key = tuple[int, str, str]


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
            key = (row.first_layer, row.attention, row.ffn)
            if key in metric:
                raise InputError(
                    f"score table, row {number}: layer {row.first_layer}, "
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
        text = read_text(file, remedy="name a score table (CSV) written by 'puzzle-search score'")
        sidecar = read_yaml(sidecar_file, format=FORMAT)
        check_keys(sidecar, sidecar_file, required=_SIDECAR_KEYS, optional={"notes"})
        reader = csv.DictReader(io.StringIO(text))
        if reader.fieldnames != _COLUMNS:
            raise InputError(
                f"{file}: columns are {reader.fieldnames}, expected {_COLUMNS}",
                remedy="correct the header",
            )
        rows = [_row(row, f"{file}, row {n}") for n, row in enumerate(reader, start=2)]
        try:
            return cls(rows, sidecar)
        except InputError as error:
            raise InputError(f"{file}: {error.message}", remedy=error.remedy) from error

    def write(self, path: str | Path) -> None:
        """Write the CSV and its sidecar."""
        file = Path(path)
        out = io.StringIO()
        writer = csv.DictWriter(out, _COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(row) for row in self.rows)
        write_text(file, out.getvalue())
        write_text(file.with_suffix(".yaml"), yaml.safe_dump(self.sidecar, sort_keys=False))

    def block_damage(
        self, layer: int, attention: str, ffn: str, config: ParentConfig, metric: str
    ) -> float:
        """Damage of one block: its composed row where there is one, else the sum of the singles.

        Raises:
            InputError: the table lacks the rows.
        """
        attention = "" if attention == config.attention else attention
        ffn = "" if ffn == config.ffn else ffn
        if not attention and not ffn:
            return 0.0
        values = self._values.get(metric)
        if values is None:
            raise InputError(
                f"the score table has no metric {metric!r}",
                remedy=f"use one of {', '.join(self._values)}",
            )
        composed = values.get((layer, attention, ffn))
        if composed is not None:
            return composed
        total = 0.0
        for key in ((layer, attention, ""), (layer, "", ffn)):
            if not key[1] and not key[2]:
                continue
            if key not in values:
                raise InputError(
                    f"the score table lacks layer {layer}, {key[1] or key[2]}",
                    remedy="score this variant, or drop it from the search space",
                )
            total += values[key]
        return total

    def damage_matrix(
        self,
        space: SearchSpace,
        pairs: list[tuple[str, str]],
        config: ParentConfig,
        metric: str,
    ) -> np.ndarray:
        """Damage of each pair in each layer, (layers, pairs); infinite where not allowed."""
        matrix = np.full((space.num_layers, len(pairs)), np.inf)
        for layer in range(space.num_layers):
            allowed_attention = set(space.attention[layer])
            allowed_ffn = set(space.ffn[layer])
            for column, (attention, ffn) in enumerate(pairs):
                if attention in allowed_attention and ffn in allowed_ffn:
                    matrix[layer, column] = self.block_damage(layer, attention, ffn, config, metric)
        return matrix


def _row(row: dict[str, str], where: str) -> ScoreRow:
    if None in row or None in row.values():
        raise InputError(f"{where}: wrong number of columns", remedy="correct the row")
    numbers: dict[str, float] = {}
    for key in ("first_layer", "last_layer", "tokens", "value", "stderr"):
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
    if numbers["first_layer"] != numbers["last_layer"]:
        raise InputError(
            f"{where}: rows over several layers are not supported by this version",
            remedy="keep rows of one layer each",
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
        stderr=numbers["stderr"],
        tokens=int(numbers["tokens"]),
    )
