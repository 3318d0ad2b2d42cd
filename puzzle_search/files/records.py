"""The one strict reader: what a file says, checked against the type that it is read into.

Types, ranges and what else holds of a value stand in that type. The first thing that does not
hold becomes an `InputError` with file, row, field, what stands there and what to do.
"""

from __future__ import annotations

import csv
import functools
import io
import json
from collections.abc import Iterable, Iterator
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from sys import intern
from typing import Annotated, Any, TypeVar, cast

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError

from puzzle_search.errors import InputError
from puzzle_search.files.reading import read_bytes

_UNKNOWN = {"extra_forbidden", "unexpected_keyword_argument"}


def _flag(cell: object) -> bool:
    if cell not in ("0", "1"):
        raise ValueError("should be 0 or 1")
    return cell == "1"


Flag = Annotated[bool, BeforeValidator(_flag)]
"""Yes or no in a CSV: 1 or 0."""


# What no real thing comes near is a slip, or damage.
Count = Annotated[int, Field(ge=0, lt=2**63)]
Size = Annotated[int, Field(ge=1, lt=2**63)]
Real = Annotated[float, Field(gt=-1e18, lt=1e18)]
NotNegative = Annotated[float, Field(ge=0, lt=1e18)]
Positive = Annotated[float, Field(gt=0, lt=1e18)]
Line = Annotated[str, Field(pattern=r"^[^\x00-\x1f\x7f]*$")]
"""No character that moves a terminal's cursor."""
Text = Annotated[Line, Field(min_length=1)]
"""A line that is not empty."""


class Record(BaseModel):
    """A mapping of known keys: no other ones, no conversions, no NaN."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, defer_build=True
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """Base of dataclasses that are rows of a CSV: the columns are the fields, in order.

    An empty cell is the field's default where it has one.
    """

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


_Record = TypeVar("_Record", bound=Record)
_Row = TypeVar("_Row", bound=Row)
_T = TypeVar("_T")


def check_record(
    kind: type[_Record], data: object, where: str | Path, *, remedy: str = "correct it"
) -> _Record:
    """What a YAML or JSON file says, as a record.

    Raises:
        InputError: a key is missing or not known, or a value is wrong; ``remedy`` says what to do.
    """
    try:
        return kind.model_validate(data)
    except (InputError, ValidationError) as error:
        raise _named(error, where, remedy, known=list(kind.model_fields)) from error


def check_line(kind: type[_T] | Any, data: object, where: str, *, remedy: str) -> _T:
    """What a JSON file says, as a dataclass: values have its types and are within its ranges.

    Raises:
        InputError: a key is missing, or a value is wrong; ``remedy`` says what to do.
    """
    try:
        line: _T = _adapter(cast(Any, kind)).validate_json(json.dumps(data), strict=True)
        return line
    except (InputError, ValidationError) as error:
        raise _named(error, where, remedy) from error


@functools.cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def read_rows(path: str | Path, kind: type[_Row], *, remedy: str) -> list[_Row]:
    """The rows of a CSV file; the first row of data is row 2.

    Raises:
        InputError: the file cannot be read, has other columns, or a cell is wrong.
    """
    columns = [field.name for field in fields(kind)]
    may_be_empty = {field.name for field in fields(kind) if field.default is not MISSING}
    validate = TypeAdapter(kind).validate_strings
    rows = []
    for number, cells in enumerate(_csv_lines(path, columns, remedy=remedy), start=2):
        if len(cells) != len(columns):
            raise InputError(f"{path}, row {number}: wrong number of columns", remedy=remedy)
        given = {
            column: intern(cell)  # a name stands in many rows
            for column, cell in zip(columns, cells, strict=True)
            if cell or column not in may_be_empty
        }
        try:
            rows.append(validate(given))
        except (InputError, ValidationError) as error:
            raise _named(error, f"{path}, row {number}", remedy) from error
    return rows


def rows_as_csv(kind: type[_Row], rows: Iterable[_Row]) -> str:
    """The rows with their header, as `read_rows` reads them."""
    out = io.StringIO()
    columns = [field.name for field in fields(kind)]
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        cells = (getattr(row, column) for column in columns)
        writer.writerow([int(cell) if isinstance(cell, bool) else cell for cell in cells])
    return out.getvalue()


def _csv_lines(path: str | Path, columns: list[str], *, remedy: str) -> Iterator[list[str]]:
    content = io.BytesIO(read_bytes(path, remedy=remedy))
    reader = csv.reader(io.TextIOWrapper(content, encoding="utf-8", newline=""))
    try:
        header = next(reader, None)
        if header != columns:
            raise InputError(
                f"{path}: columns are {header}, expected {columns}", remedy="correct the header"
            )
        yield from (cells for cells in reader if cells)
    except csv.Error as error:
        raise InputError(
            f"{path}, line {reader.line_num}: {error}", remedy="correct that line"
        ) from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} cannot be read: {error}", remedy=remedy) from error


def _named(
    error: InputError | ValidationError,
    where: str | Path,
    remedy: str,
    known: list[str] | None = None,
) -> InputError:
    if isinstance(error, InputError):  # of a validator that knows the remedy
        return InputError(f"{where}: {error.message}", remedy=error.remedy)
    # A misspelt key is missing and not known: the second says more.
    first = min(
        error.errors(include_url=False), key=lambda problem: problem["type"] not in _UNKNOWN
    )
    if first["type"] in _UNKNOWN and len(first["loc"]) == 1 and known:
        remedy = f"known keys: {', '.join(known)}"
    return InputError(f"{where}: {_described(first)}", remedy=remedy)


def _described(problem: Any) -> str:
    """Such as ``sheet.hbm_bytes is -1, but should be greater than 0``."""
    *path, key = map(str, problem["loc"] or ("",))
    inside = f"{'.'.join(path)}: " if path else ""
    if problem["type"] in _UNKNOWN:
        return f"{inside}key {key!r} is not known"
    if problem["type"] == "missing":
        return f"{inside}key {key!r} is missing"
    wanted = problem["msg"].removeprefix("Input ").partition(", unable")[0]
    if wanted.startswith("should be a valid dictionary"):
        wanted = "should be a mapping"
    if problem["type"] == "value_error":
        wanted = str(problem["ctx"]["error"])
        if not key:
            return wanted
    return f"{'.'.join((*path, key)) or 'it'} is {problem['input']!r:.80}, but {wanted}"
