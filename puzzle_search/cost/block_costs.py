"""Costs of whole blocks as somebody measured them, at one operating point: no model in between."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from puzzle_search import __version__
from puzzle_search.arch import Subblock, parse_variant
from puzzle_search.errors import InputError
from puzzle_search.files import check_keys, read_csv_rows, read_yaml, write_text

FORMAT = "puzzle-search.block-costs/1"
_SIDECAR_KEYS = {
    "format", "package_version", "source", "inputs", "evidence", "gpu", "dtype", "batch",
    "sequence_length", "num_layers", "parent", "outside",
}  # fmt: skip
_SUBBLOCKS: tuple[Subblock, Subblock] = ("attention", "ffn")


@dataclass(frozen=True, kw_only=True)
class BlockCost:
    """Cost of one block that stands for parent layers ``first_layer`` to ``last_layer``.

    Attributes:
        memory_bytes: weights and KV cache of the whole batch.
        runtime_us: time of the whole batch over the whole sequence; None where the source has none.
        parameters: weights of the block.
    """

    first_layer: int
    last_layer: int
    attention: str
    ffn: str
    memory_bytes: int
    runtime_us: float | None
    parameters: int


@dataclass(frozen=True, kw_only=True)
class OutsideCost:
    """Cost of embedding, head and all else outside the blocks; 0 where the source does not say."""

    memory_bytes: int = 0
    runtime_us: float = 0.0
    parameters: int = 0


_COLUMNS = [f.name for f in fields(BlockCost)]


@dataclass(frozen=True, kw_only=True)
class BlockCosts:
    """Costs of every block variant of every layer at one batch size and sequence length.

    Attributes:
        rows: one per replacement; all have a runtime, or none has.
        outside: what is there besides the blocks.
        source: what the costs were taken from.
        inputs: hash of each file that they were taken from.
        evidence: how they are known.
        gpu: device they were measured on; None if the source does not say.
        dtype: serving precision, in the words of the source.
        batch: sequences at a time.
        sequence_length: tokens of a sequence, input and output.
        num_layers: layers of the parent.
        parent: the parent's own (attention, ffn); None where its layers differ.
        model: the parent's name, which scores beside these costs must have too; None if not told.
        notes: what else a reader must know.

    Raises:
        InputError: a negative cost, an unknown variant, a duplicate, a layer without rows, rows
            with and without runtime, or a layer that lacks the parent's own block.
    """

    rows: tuple[BlockCost, ...]
    outside: OutsideCost
    source: str
    inputs: Mapping[str, str] = field(hash=False)
    evidence: str
    gpu: str | None
    dtype: str
    batch: int
    sequence_length: int
    num_layers: int
    parent: tuple[str, str] | None
    model: str | None = None
    notes: str = ""

    def __post_init__(self) -> None:
        seen: set[tuple[int, int, str, str]] = set()
        for number, row in enumerate(self.rows, start=2):
            _check_row(row, self.num_layers, f"block costs, row {number}")
            key = (row.first_layer, row.last_layer, row.attention, row.ffn)
            if key in seen:
                raise InputError(
                    f"block costs, row {number}: layers {row.first_layer}-{row.last_layer}, "
                    f"{row.attention} and {row.ffn} stand twice",
                    remedy="drop one of the rows",
                )
            seen.add(key)
            if (row.runtime_us is None) != (self.rows[0].runtime_us is None):
                raise InputError(
                    f"block costs, row {number}: some rows have a runtime and some have none",
                    remedy="give every row a runtime_us, or leave it empty in all",
                )
        highest = max((row.last_layer for row in self.rows), default=-1)
        if self.num_layers > highest + 1:
            raise InputError(
                f"block costs: no row for layer {highest + 1}",
                remedy="add the rows, or correct num_layers",
            )
        covered = {n for row in self.rows for n in range(row.first_layer, row.last_layer + 1)}
        missing = sorted(set(range(self.num_layers)) - covered)
        if missing:
            raise InputError(
                f"block costs: no row for layer {', '.join(map(str, missing))}",
                remedy="add the rows, or correct num_layers",
            )
        for layer in range(self.num_layers):
            if self.parent and (layer, layer, *self.parent) not in seen:
                raise InputError(
                    f"block costs: layer {layer} lacks the parent's own block, "
                    f"{self.parent[0]} and {self.parent[1]}",
                    remedy="add its row, or correct parent",
                )

    @property
    def has_runtime(self) -> bool:
        """Whether the blocks' runtimes are known."""
        return self.rows[0].runtime_us is not None

    @classmethod
    def from_file(cls, path: str | Path) -> BlockCosts:
        """Read a CSV and its ``.yaml`` sidecar.

        Raises:
            InputError: a file or column is missing, or a value is wrong; names file and row.
        """
        file = Path(path)
        sidecar_file = file.with_suffix(".yaml")
        read = read_csv_rows(
            file, _COLUMNS, remedy="name the block_costs.csv of 'puzzle-search import'"
        )
        sidecar = read_yaml(sidecar_file, format=FORMAT)
        check_keys(sidecar, sidecar_file, required=_SIDECAR_KEYS, optional={"model", "notes"})
        rows = tuple(_row(row, f"{file}, row {n}") for n, row in enumerate(read, start=2))
        described = _sidecar(sidecar, sidecar_file)
        try:
            return cls(rows=rows, **described)
        except InputError as error:
            message = error.message.removeprefix("block costs")
            raise InputError(f"{file}{message}", remedy=error.remedy) from error

    def write(self, path: str | Path) -> None:
        """Write the CSV and its sidecar."""
        file = Path(path)
        out = io.StringIO()
        writer = csv.DictWriter(out, _COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(row) for row in self.rows)
        sidecar: dict[str, Any] = {
            "format": FORMAT,
            "package_version": __version__,
            "source": self.source,
            "inputs": dict(self.inputs),
            "evidence": self.evidence,
            "gpu": self.gpu,
            "dtype": self.dtype,
            "batch": self.batch,
            "sequence_length": self.sequence_length,
            "num_layers": self.num_layers,
            "parent": dict(zip(_SUBBLOCKS, self.parent, strict=True)) if self.parent else None,
            "outside": asdict(self.outside),
        }
        if self.model is not None:
            sidecar["model"] = self.model
        if self.notes:
            sidecar["notes"] = self.notes
        write_text(file, out.getvalue())
        write_text(file.with_suffix(".yaml"), yaml.safe_dump(sidecar, sort_keys=False))


def _check_row(row: BlockCost, num_layers: int, where: str) -> None:
    if not 0 <= row.first_layer <= row.last_layer < num_layers:
        raise InputError(
            f"{where}: layers {row.first_layer} to {row.last_layer} are not within "
            f"0-{num_layers - 1}",
            remedy="correct the layers, or num_layers",
        )
    for subblock in _SUBBLOCKS:
        try:
            parse_variant(subblock, getattr(row, subblock))
        except InputError as error:
            raise InputError(f"{where}: {error.message}", remedy=error.remedy) from error
    for name in ("memory_bytes", "runtime_us", "parameters"):
        value = getattr(row, name)
        if value is not None and not (math.isfinite(value) and value >= 0):
            raise InputError(f"{where}: {name} is {value}", remedy="give 0 or more, or measure it")


def _row(row: dict[str, str], where: str) -> BlockCost:
    if None in row or None in row.values():
        raise InputError(f"{where}: wrong number of columns", remedy="correct the row")
    return BlockCost(
        first_layer=_whole(row["first_layer"], "first_layer", where),
        last_layer=_whole(row["last_layer"], "last_layer", where),
        attention=row["attention"],
        ffn=row["ffn"],
        memory_bytes=_whole(row["memory_bytes"], "memory_bytes", where),
        runtime_us=_number(row["runtime_us"], "runtime_us", where) if row["runtime_us"] else None,
        parameters=_whole(row["parameters"], "parameters", where),
    )


def _number(value: object, name: str, where: str | Path) -> float:
    try:
        number = math.nan if isinstance(value, bool) else float(str(value))
    except ValueError:
        number = math.nan
    if not math.isfinite(number) or number < 0:
        raise InputError(
            f"{where}: {name} is {value!r}, not a number from 0 up",
            remedy=f"correct {name}, or import the table again",
        )
    return number


def _whole(value: object, name: str, where: str | Path) -> int:
    number = _number(value, name, where)
    if not number.is_integer():
        raise InputError(f"{where}: {name} is {value!r}, not a whole number", remedy="correct it")
    return int(number)


def _text(data: Mapping[str, Any], name: str, where: str | Path) -> str:
    value = data[name]
    if not isinstance(value, str) or not value:
        raise InputError(f"{where}: {name} is {value!r}, not a text", remedy=f"correct {name}")
    return value


def _sidecar(data: dict[str, Any], where: Path) -> dict[str, Any]:
    check_keys(data["outside"], f"{where}, outside", required={f.name for f in fields(OutsideCost)})
    if not isinstance(data["inputs"], dict):
        raise InputError(f"{where}: inputs is not a mapping", remedy="write file: hash")
    sizes = {
        name: _whole(data[name], name, where) for name in ("batch", "sequence_length", "num_layers")
    }
    for name, size in sizes.items():
        if size < 1:
            raise InputError(f"{where}: {name} is {size}", remedy="give 1 or more")
    parent = data["parent"]
    if parent is not None:
        check_keys(parent, f"{where}, parent", required=set(_SUBBLOCKS))
    outside = data["outside"]
    return {
        **sizes,
        **{name: _text(data, name, where) for name in ("source", "evidence", "dtype")},
        "inputs": {str(name): str(value) for name, value in data["inputs"].items()},
        "gpu": None if data["gpu"] is None else _text(data, "gpu", where),
        "parent": None if parent is None else (str(parent["attention"]), str(parent["ffn"])),
        "outside": OutsideCost(
            memory_bytes=_whole(outside["memory_bytes"], "outside.memory_bytes", where),
            runtime_us=_number(outside["runtime_us"], "outside.runtime_us", where),
            parameters=_whole(outside["parameters"], "outside.parameters", where),
        ),
        "model": None if data.get("model") is None else _text(data, "model", where),
        "notes": str(data.get("notes", "")),
    }
