"""The rows of a profile's tables, read strictly."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, cast, get_args

from puzzle_search.arch import NoOp, parse_variant
from puzzle_search.cost.latency import Phase
from puzzle_search.errors import InputError
from puzzle_search.files import read_csv_rows

Part = Literal["attention", "ffn", "outside"]
EMBEDDING, HEAD, STEP = "embedding", "head", "step"
OUTSIDE = (EMBEDDING, HEAD, STEP)
"""What is measured outside the blocks, in the place of a variant."""

_REMEDY = "name a folder written by 'puzzle-search profile', or measure again"


@dataclass(frozen=True, kw_only=True)
class LatencyRow:
    """One measured point: a step of ``tokens`` new tokens per sequence over ``context``.

    Attributes:
        subblock: attention, ffn or outside.
        variant: what was measured; outside the blocks ``embedding``, ``head`` (final norm, output
            head and greedy sampling) or ``step`` (what a step of the engine costs besides).
        phase: prefill or decode.
        batch: sequences.
        tokens: new tokens of each sequence, 1 in decode.
        context: tokens that each sequence attends to at the end, the new ones among them.
        tp: tensor-parallel degree whose local shapes were measured, without all-reduce.
        latency_us: median.
        latency_us_p10: 10th percentile.
        latency_us_p90: 90th percentile.
        repeats: how often it was run.
        steady: whether (p90 - p10) / median stayed within the profiler's limit.
        group: row group that it was measured in.
    """

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
    steady: bool
    group: int


@dataclass(frozen=True, kw_only=True)
class MemoryRow:
    """Bytes of one variant on one device, as its allocator has them.

    ``workspace_bytes`` is what a step of ``workspace_rows`` tokens took beside weights, cache and
    inputs.
    """

    subblock: Part
    variant: str
    tp: int
    weight_bytes: int
    kv_bytes_per_token: int
    workspace_bytes: int
    workspace_rows: int


@dataclass(frozen=True, kw_only=True)
class GroupRow:
    """State of the device while a group of rows was measured in turn.

    None where the device does not tell.

    Attributes:
        group: number that the rows name.
        seconds: time that the group took.
        sm_clock_mhz: clock of the processors.
        memory_clock_mhz: clock of the memory.
        temperature_c: of the chip.
        power_watts: drawn.
        throttle: reasons for a lowered clock, joined by ``+``; empty for none.
        other_processes: processes on the device besides the profiler.
    """

    group: int
    seconds: float
    sm_clock_mhz: int | None
    memory_clock_mhz: int | None
    temperature_c: int | None
    power_watts: float | None
    throttle: str
    other_processes: int | None


def to_csv(
    row_type: type[LatencyRow | MemoryRow | GroupRow],
    rows: Sequence[LatencyRow] | Sequence[MemoryRow] | Sequence[GroupRow],
) -> str:
    """The rows of one table with their header."""
    out = io.StringIO()
    writer = csv.DictWriter(out, [f.name for f in fields(row_type)], lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: _cell(value) for key, value in asdict(row).items()} for row in rows)
    return out.getvalue()


def _cell(value: object) -> object:
    return int(value) if isinstance(value, bool) else value


def read_latency(file: Path) -> list[LatencyRow]:
    """Read ``latency.csv``.

    Raises:
        InputError: a missing file, another header, or a wrong value; names file and row.
    """
    return [_latency_row(cells) for cells in _read(file, LatencyRow)]


def read_memory(file: Path) -> list[MemoryRow]:
    """Read ``memory.csv``.

    Raises:
        InputError: as `read_latency`.
    """
    found = []
    for cells in _read(file, MemoryRow):
        part, variant = cells.measured()
        numbers = {f.name: cells.whole(f.name) for f in fields(MemoryRow)[2:]}
        found.append(MemoryRow(subblock=part, variant=variant, **numbers))
    return found


def read_groups(file: Path) -> list[GroupRow]:
    """Read ``groups.csv``.

    Raises:
        InputError: as `read_latency`.
    """
    return [
        GroupRow(
            group=cells.whole("group"),
            seconds=cells.positive("seconds"),
            sm_clock_mhz=cells.optional_whole("sm_clock_mhz"),
            memory_clock_mhz=cells.optional_whole("memory_clock_mhz"),
            temperature_c=cells.optional_whole("temperature_c"),
            power_watts=cells.positive("power_watts") if cells.values["power_watts"] else None,
            throttle=cells.values["throttle"],
            other_processes=cells.optional_whole("other_processes"),
        )
        for cells in _read(file, GroupRow)
    ]


def _latency_row(cells: _Cells) -> LatencyRow:
    part, variant = cells.measured()
    row = LatencyRow(
        subblock=part,
        variant=variant,
        phase=cast(Phase, cells.one_of("phase", get_args(Phase))),
        batch=cells.size("batch"),
        tokens=cells.size("tokens"),
        context=cells.size("context"),
        tp=cells.size("tp"),
        latency_us=cells.positive("latency_us"),
        latency_us_p10=cells.positive("latency_us_p10"),
        latency_us_p90=cells.positive("latency_us_p90"),
        repeats=cells.size("repeats"),
        steady=cells.one_of("steady", ("0", "1")) == "1",
        group=cells.whole("group"),
    )
    if row.context < row.tokens:
        raise cells.wrong("context", f"at least the {row.tokens} new tokens")
    if row.phase == "decode" and row.tokens != 1:
        raise cells.wrong("tokens", "1 in decode")
    if row.phase == "prefill" and row.context > row.tokens and row.batch != 1:
        raise cells.wrong("batch", "1, as of a prompt that is cut into chunks")
    return row


class _Cells:
    """Typed access to the cells of one row, with errors that name file, row and column."""

    def __init__(self, values: Mapping[str, str], where: str) -> None:
        self.values = values
        self._where = where

    def wrong(self, key: str, wanted: str) -> InputError:
        return InputError(
            f"{self._where}: {key} is {self.values[key]!r}, not {wanted}", remedy=_REMEDY
        )

    def one_of(self, key: str, allowed: Sequence[str]) -> str:
        if self.values[key] not in allowed:
            raise self.wrong(key, " or ".join(allowed))
        return self.values[key]

    def measured(self) -> tuple[Part, str]:
        """Subblock and variant."""
        part = cast(Part, self.one_of("subblock", get_args(Part)))
        if part == "outside":
            return part, self.one_of("variant", OUTSIDE)
        try:
            variant = parse_variant(part, self.values["variant"])
        except InputError as error:
            raise InputError(f"{self._where}: {error.message}", remedy=_REMEDY) from error
        if isinstance(variant, NoOp):
            raise self.wrong("variant", "something that takes time")
        return part, self.values["variant"]

    def whole(self, key: str) -> int:
        value = self.values[key]
        if not (value.isascii() and value.isdecimal()):
            raise self.wrong(key, "a whole number")
        return int(value)

    def size(self, key: str) -> int:
        if self.whole(key) < 1:
            raise self.wrong(key, "a positive whole number")
        return self.whole(key)

    def optional_whole(self, key: str) -> int | None:
        return self.whole(key) if self.values[key] else None

    def positive(self, key: str) -> float:
        try:
            value = float(self.values[key])
        except ValueError:
            value = math.nan
        if not math.isfinite(value) or value <= 0:
            raise self.wrong(key, "a positive number")
        return value


def _read(file: Path, row_type: type[Any]) -> Iterable[_Cells]:
    columns = [f.name for f in fields(row_type)]
    for number, row in enumerate(read_csv_rows(file, columns, remedy=_REMEDY), start=2):
        where = f"{file}, row {number}"
        if None in row or None in row.values():
            raise InputError(f"{where}: wrong number of columns", remedy=_REMEDY)
        yield _Cells(row, where)
