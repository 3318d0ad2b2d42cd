"""The strict reader of records and rows: what it takes, and how it names what it does not."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Self

import pytest
from pydantic import Field, model_validator

from puzzle_search.errors import InputError
from puzzle_search.files import Flag, Record, Row, check_record, read_rows, rows_as_csv


class Engine(Record):
    """A record inside another."""

    share: float = Field(gt=0, le=1)


class Machine(Record):
    """A record."""

    name: str
    cores: int = Field(ge=1)
    engines: dict[str, Engine]
    note: str | None = None


MACHINE = {"name": "abacus", "cores": 4, "engines": {"hand": {"share": 1}}}


@dataclass(frozen=True, kw_only=True)
class Cell(Row):
    """A row."""

    layer: Annotated[int, Field(ge=0)]
    us: float | None = None
    steady: Flag
    name: str

    @model_validator(mode="after")
    def _is_known(self) -> Self:
        if self.name == "unknown":
            raise InputError("nobody knows it", remedy="ask around")
        return self


def test_a_record_is_read_as_it_stands() -> None:
    read = check_record(Machine, MACHINE, "file")
    assert (read.name, read.cores, read.engines["hand"].share, read.note) == ("abacus", 4, 1, None)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"cores": 0}, "m.yaml: cores is 0, but should be greater than or equal to 1"),
        ({"cores": "4"}, "m.yaml: cores is '4', but should be a valid integer"),
        ({"cores": True}, "m.yaml: cores is True"),
        ({"cores": 4.0}, "m.yaml: cores is 4.0"),
        ({"name": 7}, "m.yaml: name is 7"),
        ({"name": ["x" * 500]}, "m.yaml: name is ['xxx"),
        ({"engines": {"hand": {"share": float("nan")}}}, "engines.hand.share is nan"),
        ({"engines": {"hand": {"share": 2}}}, "engines.hand.share is 2, but should be less"),
        ({"engines": {"hand": 3}}, "engines.hand is 3, but should be a mapping"),
        ({"engines": {"hand": {}}}, "engines.hand: key 'share' is missing"),
        ({"engines": {"hand": {"share": 1, "x": 1}}}, "engines.hand: key 'x' is not known"),
    ],
)
def test_a_wrong_value_is_named(changes: dict[str, object], named: str) -> None:
    with pytest.raises(InputError) as caught:
        check_record(Machine, MACHINE | changes, "m.yaml", remedy="measure it")
    assert named in caught.value.message
    assert len(caught.value.message) < 200
    assert caught.value.remedy == "measure it"


def test_of_a_misspelt_key_the_spelling_is_named() -> None:
    wrong = {"title" if key == "name" else key: value for key, value in MACHINE.items()}
    with pytest.raises(InputError, match="key 'title' is not known") as caught:
        check_record(Machine, wrong, "m.yaml")
    assert caught.value.remedy == "known keys: name, cores, engines, note"
    with pytest.raises(InputError, match="it is None, but should be a mapping"):
        check_record(Machine, None, "m.yaml")


def test_rows_are_read_as_they_were_written(tmp_path: Path) -> None:
    rows = [
        Cell(layer=0, us=1.5, steady=True, name="a"),
        Cell(layer=1, steady=False, name='b,"c"'),
    ]
    file = tmp_path / "rows.csv"
    file.write_text(rows_as_csv(Cell, rows))
    assert file.read_text().splitlines()[:2] == ["layer,us,steady,name", "0,1.5,1,a"]
    assert read_rows(file, Cell, remedy="measure it") == rows


@pytest.mark.parametrize(
    ("line", "named", "remedy"),
    [
        ("-1,1,1,a", "row 3: layer is '-1', but should be greater than", "measure"),
        ("1.5,1,1,a", "row 3: layer is '1.5', but should be a valid integer", "measure"),
        (",1,1,a", "row 3: layer is ''", "measure"),
        ("1,nan,1,a", "row 3: us is 'nan', but should be a finite number", "measure"),
        ("1,1,yes,a", "row 3: steady is 'yes', but should be 0 or 1", "measure"),
        ("1,1,1", "row 3: wrong number of columns", "measure"),
        ("1,1,1,a,b", "row 3: wrong number of columns", "measure"),
        ("1,1,1,unknown", "row 3: nobody knows it", "ask around"),
        ("1,1,1," + "1" * 200_000, "line 3: field larger than", "correct that line"),
        ("1,1,1,\udcff", "cannot be read: 'utf-8' codec can't decode", "measure"),
    ],
)
def test_a_wrong_row_is_named(tmp_path: Path, line: str, named: str, remedy: str) -> None:
    file = tmp_path / "rows.csv"
    file.write_text(f"layer,us,steady,name\n0,,1,a\n{line}\n", errors="surrogateescape")
    with pytest.raises(InputError) as caught:
        read_rows(file, Cell, remedy="measure")
    assert caught.value.message.removeprefix(str(file)).lstrip(", ").startswith(named)
    assert caught.value.remedy == remedy
