"""A profile: measured latencies of every variant on one device, and nothing else.

A profile is a folder: ``latency.csv`` with one measured point a row, ``memory.csv`` with measured
weight and KV bytes, and ``profile.yaml`` with the identity of the device.
"""

from __future__ import annotations

import csv
import io
import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import yaml
from numpy.typing import ArrayLike

from puzzle_search.arch import Subblock
from puzzle_search.cost.latency import Evidence, Microseconds, Phase
from puzzle_search.errors import InputError
from puzzle_search.files import check_keys, file_hash, read_text, read_yaml, write_text

FORMAT = "puzzle-search.profile/1"
Part = Literal["attention", "ffn", "outside"]
OUTSIDE = "embedding_head"

_DEVICE_KEYS = {
    "format",
    "package_version",
    "evidence",
    "date",
    "device",
    "engine",
    "dtype",
    "model",
    "memory_limit_bytes",
    "latency_sha256",
}


@dataclass(frozen=True, kw_only=True)
class LatencyRow:
    """One measured point: a step of ``tokens`` new tokens per sequence over ``context``."""

    subblock: Part
    variant: str
    phase: Phase
    batch: int
    tokens: int
    context: int
    tp: int
    latency_us: float
    latency_us_p10: float
    latency_us_p90: float
    repeats: int


@dataclass(frozen=True, kw_only=True)
class MemoryRow:
    """Measured bytes of one variant."""

    subblock: Part
    variant: str
    tp: int
    weight_bytes: int
    kv_bytes_per_token: int


_COLUMNS = [f.name for f in fields(LatencyRow)]
_WHOLE = {"batch", "tokens", "context", "tp", "repeats"}
_Key = tuple[str, str, str, int]


class Profile:
    """Measured points with their device; predicts by interpolation inside the measured grid.

    Implements ``LatencyModel``. Between points latencies are linear in batch and in length,
    which is exact for an operator that costs a + b * size; outside the grid nothing is guessed.
    """

    evidence: Evidence = "measured"

    def __init__(
        self, rows: Iterable[LatencyRow], memory: Iterable[MemoryRow], sidecar: dict[str, Any]
    ) -> None:
        self.rows = list(rows)
        self.memory = list(memory)
        self.sidecar = sidecar
        self._grids = _make_grids(self.rows)

    @property
    def batches(self) -> list[int]:
        """Measured batch sizes."""
        return sorted({row.batch for row in self.rows})

    @property
    def tp_degrees(self) -> list[int]:
        """Measured tensor-parallel degrees."""
        return sorted({row.tp for row in self.rows})

    @classmethod
    def from_folder(cls, folder: str | Path) -> Profile:
        """Read a profile.

        Raises:
            InputError: unknown columns or keys, NaN, negative latency, duplicate rows, gaps in
                the grid, or a table that was changed after it was written.
        """
        path = Path(folder)
        sidecar = read_yaml(path / "profile.yaml", format=FORMAT)
        check_keys(sidecar, path / "profile.yaml", required=_DEVICE_KEYS)
        latency = path / "latency.csv"
        text = read_text(latency, remedy="name a folder written by 'puzzle-search profile'")
        if file_hash(latency) != sidecar["latency_sha256"]:
            raise InputError(
                f"{latency} is not the table that profile.yaml describes",
                remedy="measure again; a profile is never edited",
            )
        rows = [
            _latency_row(row, f"{latency}, row {n}") for n, row in _csv(text, _COLUMNS, latency)
        ]
        memory_file = path / "memory.csv"
        memory = [
            MemoryRow(
                subblock=row["subblock"],  # type: ignore[arg-type]
                variant=row["variant"],
                **{key: _whole(row, key, f"{memory_file}, row {n}") for key in _MEMORY_NUMBERS},
            )
            for n, row in _csv(
                read_text(memory_file, remedy="measure again"),
                [f.name for f in fields(MemoryRow)],
                memory_file,
            )
        ]
        try:
            return cls(rows, memory, sidecar)
        except InputError as error:
            raise InputError(f"{latency}: {error.message}", remedy=error.remedy) from error

    def write(self, folder: str | Path) -> None:
        """Write the profile; the sidecar last, since it vouches for the table."""
        path = Path(folder)
        write_text(path / "latency.csv", _to_csv(self.rows))
        write_text(path / "memory.csv", _to_csv(self.memory))
        sidecar = self.sidecar | {"latency_sha256": file_hash(path / "latency.csv")}
        write_text(path / "profile.yaml", yaml.safe_dump(sidecar, sort_keys=False))
        self.sidecar = sidecar

    def subblock_us(
        self,
        subblock: Subblock,
        variant: str,
        phase: Phase,
        *,
        batch: ArrayLike,
        tokens: ArrayLike,
        context: ArrayLike,
        tp: int,
    ) -> Microseconds:
        """Microseconds of one subblock.

        Raises:
            InputError: the variant was not measured, or the point is outside the grid.
        """
        batch, length = np.broadcast_arrays(batch, tokens if phase == "prefill" else context)
        if variant == "no_op":
            return np.zeros(batch.shape)
        return self._interpolate((subblock, variant, phase, tp), batch, length)

    def outside_us(
        self, phase: Phase, *, batch: ArrayLike, tokens: ArrayLike, tp: int
    ) -> Microseconds:
        """Microseconds of embedding, head and whole-step overhead."""
        batch, tokens = np.broadcast_arrays(batch, tokens)
        return self._interpolate(("outside", OUTSIDE, phase, tp), batch, tokens)

    def _interpolate(self, key: _Key, batch: np.ndarray, length: np.ndarray) -> Microseconds:
        what = f"{key[0]} {key[1]}, {key[2]}, tp {key[3]}"
        if key not in self._grids:
            raise InputError(
                f"the profile has no measurement of {what}",
                remedy="profile this variant, or drop it from the search space",
            )
        batches, lengths, latency_us = self._grids[key]
        for name, axis, wanted in (("batch", batches, batch), ("length", lengths, length)):
            if wanted.min() < axis[0] or wanted.max() > axis[-1]:
                raise InputError(
                    f"{what}: {name} {wanted.min():g} to {wanted.max():g} lies outside the "
                    f"measured {axis[0]:g} to {axis[-1]:g}",
                    remedy="profile a wider grid, or ask for a scenario inside it",
                )
        i, u = _bracket(batches, batch)
        j, v = _bracket(lengths, length)
        low = latency_us[i, j] * (1 - v) + latency_us[i, j + 1] * v
        high = latency_us[i + 1, j] * (1 - v) + latency_us[i + 1, j + 1] * v
        result: Microseconds = low * (1 - u) + high * u
        return result


_MEMORY_NUMBERS = ("tp", "weight_bytes", "kv_bytes_per_token")


def _bracket(axis: np.ndarray, at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Index of the knot below, and the fraction of the way to the next."""
    below = np.clip(np.searchsorted(axis, at, side="right") - 1, 0, len(axis) - 2)
    return below, (at - axis[below]) / (axis[below + 1] - axis[below])


def _make_grids(
    rows: list[LatencyRow],
) -> dict[_Key, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    points: dict[_Key, dict[tuple[int, int], float]] = defaultdict(dict)
    for number, row in enumerate(rows, start=2):
        key: _Key = (row.subblock, row.variant, row.phase, row.tp)
        # Outside the blocks nothing depends on the context, only on the new tokens.
        by_tokens = row.phase == "prefill" or row.subblock == "outside"
        place = (row.batch, row.tokens if by_tokens else row.context)
        if place in points[key]:
            raise InputError(
                f"profile, row {number}: {key[0]} {key[1]}, {key[2]}, batch {place[0]}, "
                f"length {place[1]} twice",
                remedy="measure again",
            )
        points[key][place] = row.latency_us
    grids = {}
    for key, values in points.items():
        batches = np.array(sorted({batch for batch, _ in values}), dtype=np.float64)
        lengths = np.array(sorted({length for _, length in values}), dtype=np.float64)
        table = np.array([[values.get((int(b), int(s)), np.nan) for s in lengths] for b in batches])
        if np.isnan(table).any():
            raise InputError(
                f"profile: the grid of {key[0]} {key[1]}, {key[2]} has gaps", remedy="measure again"
            )
        # A single knot stands for its one value; doubled, it interpolates like any other.
        grids[key] = _widen(batches, lengths, table)
    return grids


def _widen(
    batches: np.ndarray, lengths: np.ndarray, table: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    if len(batches) == 1:
        batches, table = np.append(batches, np.nextafter(batches, np.inf)), table.repeat(2, axis=0)
    if len(lengths) == 1:
        lengths, table = np.append(lengths, np.nextafter(lengths, np.inf)), table.repeat(2, axis=1)
    return batches, lengths, table


def _csv(text: str, columns: list[str], file: Path) -> Iterable[tuple[int, dict[str, str]]]:
    reader = csv.DictReader(io.StringIO(text))
    if reader.fieldnames != columns:
        raise InputError(
            f"{file}: columns are {reader.fieldnames}, expected {columns}", remedy="measure again"
        )
    for number, row in enumerate(reader, start=2):
        if None in row or None in row.values():
            raise InputError(
                f"{file}, row {number}: wrong number of columns", remedy="measure again"
            )
        yield number, row


def _latency_row(row: dict[str, str], where: str) -> LatencyRow:
    if row["subblock"] not in get_args(Part) or row["phase"] not in get_args(Phase):
        raise InputError(
            f"{where}: unknown subblock {row['subblock']!r} or phase {row['phase']!r}",
            remedy="measure again",
        )
    numbers = {
        key: _whole(row, key, where) if key in _WHOLE else _latency(row, key, where)
        for key in _COLUMNS[3:]
    }
    return LatencyRow(
        subblock=row["subblock"],  # type: ignore[arg-type]
        variant=row["variant"],
        phase=row["phase"],  # type: ignore[arg-type]
        **numbers,  # type: ignore[arg-type]
    )


def _whole(row: dict[str, str], key: str, where: str) -> int:
    if not row[key].isdecimal():
        raise InputError(
            f"{where}: {key} is {row[key]!r}, not a whole number", remedy="measure again"
        )
    return int(row[key])


def _latency(row: dict[str, str], key: str, where: str) -> float:
    try:
        value = float(row[key])
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or value <= 0:
        raise InputError(
            f"{where}: {key} is {row[key]!r}, not a positive time", remedy="measure again"
        )
    return value


def _to_csv(rows: list[Any]) -> str:
    out = io.StringIO()
    if rows:
        writer = csv.DictWriter(out, [f.name for f in fields(rows[0])], lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)
    return out.getvalue()
