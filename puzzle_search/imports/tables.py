"""What every importer needs: checked values, metric names, and the folder that it writes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from puzzle_search import __version__
from puzzle_search.cost.block_costs import BlockCost, BlockCosts
from puzzle_search.errors import InputError
from puzzle_search.files import folder_written_whole
from puzzle_search.solve.problem.score_table import FORMAT as SCORE_FORMAT
from puzzle_search.solve.problem.score_table import ScoreRow, ScoreTable

_MIB_BYTES = 2**20
_LARGEST = 1e18  # no size or time of a model comes near
_FILES = {"scores.csv", "scores.yaml", "block_costs.csv", "block_costs.yaml"}
_KL_NAMES = {"kl_div", "kl_div_loss"}


@dataclass(frozen=True, kw_only=True)
class ImportedTables:
    """The scores and costs of one source, layer by layer, pair by pair."""

    scores: ScoreTable
    costs: BlockCosts

    @property
    def metrics(self) -> tuple[str, ...]:
        """Metrics of the score table, in the order of the source."""
        return tuple(dict.fromkeys(row.metric for row in self.scores.rows))

    def write(self, out: str | Path) -> None:
        """Write both tables with their sidecars, all four files or none.

        Raises:
            InputError: ``out`` holds something else than an earlier import.
        """
        folder = Path(out)
        if folder.exists() and (
            not folder.is_dir() or {file.name for file in folder.iterdir()} - _FILES
        ):
            raise InputError(
                f"{folder} exists and holds other files than an import",
                remedy="name a new folder, or remove this one",
            )
        with folder_written_whole(folder) as temporary:
            self.scores.write(temporary / "scores.csv")
            self.costs.write(temporary / "block_costs.csv")


def build_tables(
    where: str | Path,
    scores: list[ScoreRow],
    sidecar: dict[str, Any],
    *,
    rows: list[BlockCost],
    **described: Any,
) -> ImportedTables:
    """Both tables, by layer.

    Args:
        where: file to name in errors.
        scores: rows of the score table.
        sidecar: its sidecar.
        rows: rows of the block costs.
        described: the other fields of ``BlockCosts``.

    Raises:
        InputError: a block is there twice, a layer is missing, or a block lacks a metric.
    """
    try:
        _check_same_metrics(scores)
        by_layer = tuple(sorted(rows, key=lambda row: row.first_layer))
        costs = BlockCosts(rows=by_layer, model=str(sidecar["parent"]), **described)
        table = ScoreTable(sorted(scores, key=lambda row: row.first_layer), sidecar)
    except InputError as error:
        raise InputError(f"{where}: {error.message}", remedy=error.remedy) from error
    return ImportedTables(scores=table, costs=costs)


def score_sidecar(*, parent: str, data: str, made_by: str, notes: str) -> dict[str, Any]:
    """The sidecar of an imported score table."""
    return {
        "format": SCORE_FORMAT,
        "package_version": __version__,
        "parent": parent,
        "evidence": "measured",
        "data": data,
        "made_by": made_by,
        "notes": notes,
    }


def score_rows(
    layer: int, pair: tuple[str, str], metrics: Mapping[str, Any], where: str
) -> list[ScoreRow]:
    """One row a metric, lower is better in all: a share of hits x becomes ``one_minus_<name>``.

    Raises:
        InputError: there is no metric, or one is not a number.
    """
    if not metrics:
        raise InputError(f"{where}: no metrics", remedy="score this replacement first")
    rows = []
    for name in metrics:
        number = finite(metrics, name, where)
        metric = "kl" if name in _KL_NAMES else name
        if "accuracy" in name or "agreement" in name:
            metric, number = f"one_minus_{name}", 1 - number
        rows.append(
            ScoreRow(
                first_layer=layer,
                last_layer=layer,
                attention=pair[0],
                ffn=pair[1],
                metric=metric,
                value=number,
                stderr=None,
                tokens=0,
            )
        )
    return rows


def _check_same_metrics(rows: list[ScoreRow]) -> None:
    given: dict[tuple[int, str, str], set[str]] = {}
    for row in rows:
        given.setdefault((row.first_layer, row.attention, row.ffn), set()).add(row.metric)
    every = set().union(*given.values())
    for (layer, attention, ffn), metrics in given.items():
        if metrics != every:
            raise InputError(
                f"layer {layer}, {attention} and {ffn} lack {', '.join(sorted(every - metrics))}",
                remedy="score all replacements with the same metrics",
            )


def finite(data: Mapping[str, Any], key: str, where: str) -> float:
    """A number of a JSON object.

    Raises:
        InputError: it is missing, no number, or not finite.
    """
    value = data.get(key)
    # JSON as Python reads it knows NaN and Infinity, and its booleans are integers.
    number = value if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
    if not abs(number) < _LARGEST:
        raise InputError(
            f"{where}: {key} is {value!r:.80}, not a number",
            remedy="correct the file, or make it anew",
        )
    return float(number)


def whole(data: Mapping[str, Any], key: str, where: str) -> int:
    """A whole number from 0 up of a JSON object.

    Raises:
        InputError: it is missing or something else.
    """
    number = finite(data, key, where)
    if number < 0 or not number.is_integer():
        raise InputError(
            f"{where}: {key} is {data[key]!r}, not a whole number from 0 up",
            remedy="correct the file, or make it anew",
        )
    return int(number)


def mib_as_bytes(data: Mapping[str, Any], key: str, where: str) -> int:
    """Mebibytes of a JSON object, as whole bytes.

    Raises:
        InputError: it is missing or no number.
    """
    return round(finite(data, key, where) * _MIB_BYTES)


def mapping(value: object, where: str) -> Mapping[str, Any]:
    """A JSON object.

    Raises:
        InputError: it is something else.
    """
    if not isinstance(value, dict):
        raise InputError(
            f"{where} is not a JSON object", remedy="check that this file is of the named kind"
        )
    return value
