"""A profile's folder: three tables, and the sidecar that describes and vouches for them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import yaml
from pydantic import model_validator

from puzzle_search.arch import ParentConfig
from puzzle_search.cost.measured.profile_rows import (
    GroupRow,
    LatencyRow,
    MemoryRow,
)
from puzzle_search.cost.memory import parse_dtype
from puzzle_search.errors import InputError
from puzzle_search.files import (
    Count,
    NotNegative,
    Positive,
    Record,
    Size,
    check_record,
    file_hash,
    read_rows,
    read_yaml,
    rows_as_csv,
    write_text,
)

FORMAT = "puzzle-search.profile/2"
TABLES = ("latency", "memory", "groups")

_REMEDY = "measure again; a profile is never edited"
_ROWS_REMEDY = "name a folder written by 'puzzle-search profile', or measure again"

Tables = tuple[list[LatencyRow], list[MemoryRow], list[GroupRow]]


class _Device(Record, extra="allow"):
    """What is known of the device differs between kinds."""

    name: str
    memory_bytes: Size


class _Ceilings(Record):
    """``copy_bytes_per_second`` is None where it was not measured."""

    copy_bytes_per_second: Positive | None
    matmul_flops_per_second: dict[str, Positive]


class _Skipped(Record):
    point: str
    why: str


class _HeldOut(Record):
    """Relative errors of interpolated points; None where none was held out."""

    points: Count
    median: NotNegative | None
    p90: NotNegative | None
    worst: NotNegative | None

    @model_validator(mode="after")
    def _has_errors(self) -> Self:
        if self.points and None in (self.median, self.p90, self.worst):
            raise ValueError("median, p90 or worst is no relative error")
        return self


class _Sidecar(Record):
    format: str
    package_version: str
    evidence: str
    date: str
    device: _Device
    engine: str
    dtype: str
    model: str
    parent_config: dict[str, Any]
    memory_limit_bytes: Size
    prefill_chunk_tokens: Size
    ceilings: _Ceilings
    skipped: list[_Skipped]
    interpolation: _HeldOut
    latency_sha256: str
    memory_sha256: str
    groups_sha256: str

    @model_validator(mode="after")
    def _names_dtype_and_parent(self) -> Self:
        parse_dtype(self.dtype)
        ParentConfig.from_dict(self.parent_config, name=self.model, where="parent_config")
        return self


def read_profile(folder: Path) -> tuple[Tables, dict[str, Any]]:
    """The tables and the sidecar of a profile.

    Raises:
        InputError: a file is missing, has unknown columns or keys or wrong values, or a table is
            not the one that the sidecar vouches for; names file and row.
    """
    file = folder / "profile.yaml"
    sidecar = read_yaml(file, format=FORMAT)
    check_record(_Sidecar, sidecar, file, remedy=_REMEDY)
    tables = (
        read_rows(folder / "latency.csv", LatencyRow, remedy=_ROWS_REMEDY),
        read_rows(folder / "memory.csv", MemoryRow, remedy=_ROWS_REMEDY),
        read_rows(folder / "groups.csv", GroupRow, remedy=_ROWS_REMEDY),
    )
    for table in TABLES:
        if file_hash(folder / f"{table}.csv") != sidecar[f"{table}_sha256"]:
            raise InputError(
                f"{folder / table}.csv is not the table that profile.yaml describes",
                remedy=_REMEDY,
            )
    return tables, sidecar


def write_profile(
    folder: Path,
    rows: Sequence[LatencyRow],
    memory: Sequence[MemoryRow],
    groups: Sequence[GroupRow],
    sidecar: dict[str, Any],
) -> dict[str, Any]:
    """Write a profile, the sidecar last; returns it with the hashes of the tables."""
    write_text(folder / "latency.csv", rows_as_csv(LatencyRow, rows))
    write_text(folder / "memory.csv", rows_as_csv(MemoryRow, memory))
    write_text(folder / "groups.csv", rows_as_csv(GroupRow, groups))
    hashes = {f"{table}_sha256": file_hash(folder / f"{table}.csv") for table in TABLES}
    whole = {key: value for key, value in sidecar.items() if key not in hashes} | hashes
    write_text(folder / "profile.yaml", yaml.safe_dump(whole, sort_keys=False))
    return whole
