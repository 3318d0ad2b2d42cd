"""The file of a cost model: strict reading, and writing.

A cost model that is incomplete or that beats the hardware is an error, not a surprise in answers.
Tables stand as block text, one row a line: a file with many reads in milliseconds.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, get_args

import numpy as np
import yaml
from numpy.typing import NDArray

from puzzle_search.cost.latency import Evidence
from puzzle_search.cost.modelled.constants import (
    AllReduceConstants,
    AllReduceLines,
    DecodeAttentionConstants,
    DecodeGroup,
    ElementwiseConstants,
    EngineConstants,
    GemmConstants,
    PrefillAttentionConstants,
    Provenance,
    Sheet,
    StepConstants,
    Tile,
)
from puzzle_search.cost.modelled.operators import BYTES_PER_VALUE
from puzzle_search.errors import InputError
from puzzle_search.files import check_keys

# Evidence that needs no error beside it: nothing was fitted on the device itself.
_NOT_FITTED = ("datasheet", "derived", "reconstructed")


def to_yaml(data: object) -> str:
    """YAML text of plain data; lists of numbers and tables read as rows."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, width=100)


class _Dumper(yaml.SafeDumper):
    """Lists on one line, text of several lines as a block."""

    def represent_flow_list(self, data: list[Any]) -> yaml.Node:
        return self.represent_sequence("tag:yaml.org,2002:seq", data, flow_style=True)

    def represent_block_text(self, data: str) -> yaml.Node:
        style = "|" if "\n" in data else None
        return self.represent_scalar("tag:yaml.org,2002:str", data, style=style)


_Dumper.add_representer(list, _Dumper.represent_flow_list)
_Dumper.add_representer(str, _Dumper.represent_block_text)


def plain(value: Any) -> Any:
    """Dataclasses to mappings, with provenance among a group's own keys; floats to five digits."""
    if dataclasses.is_dataclass(value):
        fields: dict[str, Any] = {}
        for field in dataclasses.fields(value):
            item = plain(getattr(value, field.name))
            fields |= item if field.name == "provenance" else {field.name: item}
        return fields
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return " ".join(str(tile) for tile in value)
    if isinstance(value, np.ndarray) and value.ndim == 2:
        return "".join(" ".join(f"{item:.5g}" for item in row) + "\n" for row in value)
    if isinstance(value, np.ndarray):
        return [plain(item) for item in value.tolist()]
    return float(f"{value:.5g}") if isinstance(value, float) else value


# --- strict reading -------------------------------------------------------------------------

_PROVENANCE = {"evidence", "source", "error_median", "error_p90"}
# Cluster, rows and columns of a tile, with its efficiency where that is below 1.
_TILE = re.compile(r"([1-9]\d*)x([1-9]\d*)x([1-9]\d*)(?:@(0?\.\d*[1-9]\d*))?")
_Constants = TypeVar(
    "_Constants",
    GemmConstants,
    PrefillAttentionConstants,
    ElementwiseConstants,
    AllReduceLines,
    StepConstants,
    Tile,
)
_Value = TypeVar("_Value")


def read_text_value(value: object, where: str) -> str:
    """A name or a sentence.

    Raises:
        InputError: it is no text, or empty.
    """
    if not isinstance(value, str) or not value.strip():
        raise InputError(f"{where} is {value!r}", remedy="write a name or a sentence")
    return value


def _mapping(value: object, where: str) -> Mapping[Any, Any]:
    if not isinstance(value, Mapping) or not value:
        raise InputError(f"{where} is {value!r}", remedy="write a mapping with at least one entry")
    return value


def _number(value: object, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise InputError(f"{where} is {value!r}", remedy="write a finite number")
    if value < 0:
        raise InputError(f"{where} is negative: {value!r}", remedy="write a number from 0 up")
    if where.endswith("_share") and value > 1:
        raise InputError(f"{where} is {value!r}", remedy="write a share from 0 to 1")
    if where.endswith("_fraction") and not 0 < value <= 1:
        raise InputError(
            f"{where} is {value!r}, which beats the hardware or divides by zero",
            remedy="write a fraction above 0, at most 1",
        )
    if where.endswith(("engine_scalar", "corner")) and value < 1:
        raise InputError(
            f"{where} is {value!r}, which beats the hardware", remedy="write a number from 1 up"
        )
    return float(value)


def _whole(value: object, where: str) -> int:
    number = _number(value, where)
    if not number.is_integer() or number == 0:
        raise InputError(f"{where} is {value!r}", remedy="write a positive whole number")
    return int(number)


def _provenance(data: Mapping[str, Any], where: str) -> Provenance:
    evidence = data["evidence"]
    if evidence not in get_args(Evidence):
        raise InputError(
            f"{where}.evidence is {evidence!r}",
            remedy=f"use one of {', '.join(get_args(Evidence))}",
        )
    errors: dict[str, float | None] = {}
    for key in ("error_median", "error_p90"):
        missing = data[key] is None
        if missing and evidence not in _NOT_FITTED:
            raise InputError(
                f"{where}.{key} is missing for {evidence} constants",
                remedy="give the relative error on points that were not fitted",
            )
        errors[key] = None if missing else _number(data[key], f"{where}.{key}")
    source = read_text_value(data["source"], f"{where}.source")
    return Provenance(evidence=evidence, source=source, **errors)


def _constants(kind: type[_Constants], data: object, where: str) -> _Constants:
    """Read a group: its own fields are numbers, flags or tiles, beside them its provenance."""
    fields = {field.name: field.type for field in dataclasses.fields(kind)}
    proven = fields.pop("provenance", None) is not None
    check_keys(data, where, required=set(fields) | (_PROVENANCE if proven else set()))
    values = _mapping(data, where)
    read: dict[str, Callable[[object, str], Any]] = {
        "int": _whole,
        "float": _number,
        "bool": _flag,
    }
    given: dict[str, Any] = {
        name: read.get(str(kind_of), _tiles)(values[name], f"{where}.{name}")
        for name, kind_of in fields.items()
    }
    if proven:
        given["provenance"] = _provenance(values, where)
    return kind(**given)


def _by_dtype(data: object, where: str, read: Callable[[object, str], _Value]) -> dict[str, _Value]:
    """A mapping of some of the known dtypes, at least one."""
    check_keys(data, where, required=set(), optional=set(BYTES_PER_VALUE))
    values = _mapping(data, where)
    return {str(dtype): read(value, f"{where}.{dtype}") for dtype, value in values.items()}


def read_sheet(data: object, where: str) -> Sheet:
    """Read the hardware sheet.

    Raises:
        InputError: a key or a value is wrong, or the reserve leaves no memory.
    """
    fields = {field.name for field in dataclasses.fields(Sheet)} - {"provenance"}
    check_keys(data, where, required=fields | _PROVENANCE)
    values = _mapping(data, where)
    link = values["link_bytes_per_second"]
    sheet = Sheet(
        provenance=_provenance(values, where),
        hbm_bytes=_whole(values["hbm_bytes"], f"{where}.hbm_bytes"),
        reserve_bytes=_whole(values["reserve_bytes"], f"{where}.reserve_bytes"),
        num_sms=_whole(values["num_sms"], f"{where}.num_sms"),
        flops_per_second=_by_dtype(values["flops_per_second"], f"{where}.flops_per_second", _rate),
        hbm_bytes_per_second=_rate(values["hbm_bytes_per_second"], f"{where}.hbm_bytes_per_second"),
        link_bytes_per_second=None
        if link is None
        else _rate(link, f"{where}.link_bytes_per_second"),
    )
    if sheet.memory_limit_bytes <= 0:
        raise InputError(f"{where}: the reserve leaves no memory", remedy="lower reserve_bytes")
    return sheet


def _rate(value: object, where: str) -> float:
    rate = _number(value, where)
    if rate == 0:
        raise InputError(f"{where} is 0", remedy="write a positive number")
    return rate


def _decode_attention(data: object, where: str) -> DecodeAttentionConstants:
    check_keys(data, where, required={"work_log2", "context_log2", "groups"} | _PROVENANCE)
    values = _mapping(data, where)
    axes = {
        axis: _numbers(values[axis], f"{where}.{axis}") for axis in ("work_log2", "context_log2")
    }
    for axis, knots in axes.items():
        if knots.ndim != 1 or len(knots) < 2 or np.any(np.diff(knots) <= 0):
            raise InputError(f"{where}.{axis} does not rise", remedy="list the knots in order")
    shape = (len(axes["work_log2"]), len(axes["context_log2"]))
    groups = {
        _whole(group, f"{where}.groups"): _decode_group(entry, f"{where}.groups.{group}", shape)
        for group, entry in _mapping(values["groups"], f"{where}.groups").items()
    }
    return DecodeAttentionConstants(
        provenance=_provenance(values, where), groups=dict(sorted(groups.items())), **axes
    )


def _decode_group(data: object, where: str, shape: tuple[int, int]) -> DecodeGroup:
    numbers = ("floor_us", "us_per_stream", "memory_fraction")
    check_keys(data, where, required={*numbers, "ratio"})
    values = _mapping(data, where)
    return DecodeGroup(
        ratio=_table(values["ratio"], f"{where}.ratio", shape),
        **{name: _number(values[name], f"{where}.{name}") for name in numbers},
    )


def _table(value: object, where: str, shape: tuple[int, int]) -> NDArray[np.float64]:
    """Block text, one row of numbers a line."""
    try:
        rows = [[float(item) for item in line.split()] for line in str(value).splitlines()]
    except ValueError as error:
        raise InputError(f"{where}: {error}", remedy="write rows of numbers") from error
    if [len(row) for row in rows] != [shape[1]] * shape[0]:
        raise InputError(
            f"{where} is no table of {shape[0]} rows of {shape[1]} numbers",
            remedy="give one row per knot of work_log2, one column per knot of context_log2",
        )
    table = np.array(rows, dtype=np.float64)
    if not np.all(np.isfinite(table) & (table > 0)):
        raise InputError(
            f"{where} has entries that are not positive", remedy="write numbers above 0"
        )
    return table


def _numbers(value: object, where: str) -> NDArray[np.float64]:
    if not isinstance(value, list) or not value:
        raise InputError(f"{where} is {value!r}", remedy="write a list of numbers")
    return np.array([_number(item, f"{where}[{i}]") for i, item in enumerate(value)])


def _all_reduce(data: object, where: str) -> AllReduceConstants:
    check_keys(data, where, required={"by_tp"} | _PROVENANCE)
    values = _mapping(data, where)
    by_tp = _mapping(values["by_tp"], f"{where}.by_tp")
    return AllReduceConstants(
        provenance=_provenance(values, where),
        by_tp={
            _whole(tp, f"{where}.by_tp"): _constants(AllReduceLines, lines, f"{where}.by_tp.{tp}")
            for tp, lines in by_tp.items()
        },
    )


def _tiles(value: object, where: str) -> dict[int, tuple[Tile, ...]]:
    """Tiles by the least number of rows that they are used for."""
    tiers = {}
    for rows, text in _mapping(value, where).items():
        words = [_TILE.fullmatch(word) for word in str(text).split()]
        found = [word.groups() for word in words if word]
        if len(found) != len(words) or not found:
            raise InputError(
                f"{where}.{rows} is {text!r}",
                remedy="write tiles as CLUSTERxROWSxCOLUMNS@EFFICIENCY: 1x64x128 2x128x128@0.8",
            )
        tiers[_whole(rows, f"{where}, rows")] = tuple(
            Tile(
                cluster=int(cluster),
                rows=int(tile_rows),
                columns=int(columns),
                efficiency=float(share or 1),
            )
            for cluster, tile_rows, columns, share in found
        )
    if min(tiers) != 1:
        raise InputError(f"{where} starts at {min(tiers)} rows", remedy="give tiles for 1 row on")
    return dict(sorted(tiers.items()))


def _flag(value: object, where: str) -> bool:
    if not isinstance(value, bool):
        raise InputError(f"{where} is {value!r}", remedy="write true or false")
    return value


def read_engines(data: object, where: str, sheet: Sheet) -> dict[str, EngineConstants]:
    """Read the constants of every engine; there may be none yet.

    Raises:
        InputError: a key or a value is wrong, or constants are of a dtype that the sheet lacks.
    """
    if data == {}:
        return {}
    return {
        str(name): _engine(engine, f"{where}, engines.{name}", sheet)
        for name, engine in _mapping(data, f"{where}, engines").items()
    }


def _engine(data: object, where: str, sheet: Sheet) -> EngineConstants:
    check_keys(data, where, required={field.name for field in dataclasses.fields(EngineConstants)})
    values = _mapping(data, where)

    def gemm(entry: object, place: str) -> GemmConstants:
        return _constants(GemmConstants, entry, place)

    def prefill(entry: object, place: str) -> PrefillAttentionConstants:
        return _constants(PrefillAttentionConstants, entry, place)

    reduce = values["all_reduce"]
    engine = EngineConstants(
        version=read_text_value(values["version"], f"{where}.version"),
        gemm=_by_dtype(values["gemm"], f"{where}.gemm", gemm),
        prefill_attention=_by_dtype(
            values["prefill_attention"], f"{where}.prefill_attention", prefill
        ),
        decode_attention=_by_dtype(
            values["decode_attention"], f"{where}.decode_attention", _decode_attention
        ),
        elementwise=_constants(ElementwiseConstants, values["elementwise"], f"{where}.elementwise"),
        all_reduce=None if reduce is None else _all_reduce(reduce, f"{where}.all_reduce"),
        step=_constants(StepConstants, values["step"], f"{where}.step"),
    )
    served = set(engine.prefill_attention)
    missing = served - engine.gemm.keys() | served ^ engine.decode_attention.keys()
    if missing or ("fp8" in served and "bf16" not in engine.gemm):
        raise InputError(
            f"{where}: {', '.join(sorted(missing)) or 'bf16'} constants are incomplete",
            remedy="give gemm, prefill_attention and decode_attention for each dtype, and gemm of "
            "bf16 beside fp8: the output head needs it",
        )
    unknown = engine.gemm.keys() - sheet.flops_per_second.keys()
    if unknown or (engine.all_reduce is not None and sheet.link_bytes_per_second is None):
        raise InputError(
            f"{where}: the sheet has no rate for {', '.join(sorted(unknown)) or 'all_reduce'}",
            remedy="add it to flops_per_second or link_bytes_per_second, or drop the constants",
        )
    return engine
