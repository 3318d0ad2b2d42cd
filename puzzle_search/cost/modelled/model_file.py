"""The file of a cost model: strict reading, and writing.

A cost model that is incomplete or that beats the hardware is an error, not a surprise in answers.
Tables stand as block text, one row a line: a file with many reads in milliseconds.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeVar, get_args

import numpy as np
import yaml
from numpy.typing import NDArray

from puzzle_search.cost.latency import Evidence
from puzzle_search.cost.memory import parse_dtype
from puzzle_search.cost.modelled.constants import (
    AllReduceConstants,
    AllReduceLines,
    DecodeAttentionConstants,
    DecodeKernel,
    ElementwiseConstants,
    EngineConstants,
    ExpertsConstants,
    GemmConstants,
    PrefillAttentionConstants,
    PrefillKernel,
    Provenance,
    Sheet,
    StepConstants,
)
from puzzle_search.cost.modelled.operators import BYTES_PER_VALUE, EXPERT_BYTES
from puzzle_search.cost.modelled.ratios import Ratios
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
            if item != {}:  # no experts were timed
                fields |= item if field.name == "provenance" else {field.name: item}
        return fields
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray) and value.ndim == 2:
        return "".join(" ".join(_short(item) for item in row) + "\n" for row in value)
    if isinstance(value, np.ndarray):
        return " ".join(f"{item:.5g}" for item in value)
    return float(f"{value:.5g}") if isinstance(value, float) else value


def _short(ratio: float) -> str:
    """Three digits: half a percent at most, below the noise of any timing."""
    return f"{ratio:.3g}".removeprefix("0")


# --- strict reading -------------------------------------------------------------------------

_LARGEST = 1e18  # no rate, size or error of real hardware comes near
_PROVENANCE = {"evidence", "source", "error_median", "error_p90"}
_GEMM_AXES = {"rows", "columns", "inner", "weights"}
_PREFILL_AXES = {"context", "queries", "group"}
_DECODE_AXES = {"work", "context", "group", "streams"}
_EXPERTS_AXES = {"tokens", "experts", "width"}
_Constants = TypeVar(
    "_Constants",
    GemmConstants,
    PrefillKernel,
    DecodeKernel,
    ElementwiseConstants,
    ExpertsConstants,
    StepConstants,
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
    number = value if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
    if not abs(number) < _LARGEST:
        raise InputError(f"{where} is {value!r:.80}", remedy=f"write a number below {_LARGEST:g}")
    if number < 0:
        raise InputError(f"{where} is negative: {value!r}", remedy="write a number from 0 up")
    if where.endswith("_share") and number > 1:
        raise InputError(f"{where} is {value!r}", remedy="write a share from 0 to 1")
    if where.endswith("_fraction") and not 0 < number <= 1:
        raise InputError(
            f"{where} is {value!r}, which beats the hardware or divides by zero",
            remedy="write a fraction above 0, at most 1",
        )
    if where.endswith(("engine_scalar", "corner")) and number < 1:
        raise InputError(
            f"{where} is {value!r}, which beats the hardware", remedy="write a number from 1 up"
        )
    return float(number)


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


def _constants(
    kind: type[_Constants], data: object, where: str, axes: set[str] | None = None
) -> _Constants:
    """Read a group: its own fields are numbers or ratios, beside them its provenance."""
    fields = {field.name: field.type for field in dataclasses.fields(kind)}
    proven = fields.pop("provenance", None) is not None
    check_keys(data, where, required=set(fields) | (_PROVENANCE if proven else set()))
    values = _mapping(data, where)
    read: dict[str, Callable[[object, str], Any]] = {"int": _whole, "float": _number}
    given: dict[str, Any] = {
        name: _ratios(values[name], f"{where}.{name}", axes or set())
        if name == "ratios"
        else read[str(kind_of)](values[name], f"{where}.{name}")
        for name, kind_of in fields.items()
    }
    if proven:
        given["provenance"] = _provenance(values, where)
    return kind(**given)


def _by_dtype(
    data: object,
    where: str,
    read: Callable[[object, str], _Value],
    known: Collection[str] = BYTES_PER_VALUE,
) -> dict[str, _Value]:
    """A mapping of some of the known dtypes, at least one."""
    check_keys(data, where, required=set(), optional=set(known))
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
        vendor=read_text_value(values["vendor"], f"{where}.vendor"),
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


def _attention(data: object, where: str, kernel: Callable[[object, str], _Value]) -> dict[str, Any]:
    """Kernels by head_dim, and their provenance."""
    check_keys(data, where, required={"head_dims"} | _PROVENANCE)
    values = _mapping(data, where)
    found = {
        _whole(size, f"{where}.head_dims"): kernel(entry, f"{where}.head_dims.{size}")
        for size, entry in _mapping(values["head_dims"], f"{where}.head_dims").items()
    }
    return {"provenance": _provenance(values, where), "head_dims": dict(sorted(found.items()))}


def _ratios(value: object, where: str, names: set[str]) -> Ratios | None:
    """Tables over pairs of axes, or nothing."""
    if value is None:
        return None
    check_keys(value, where, required={"axes", "tables"})
    values = _mapping(value, where)
    check_keys(values["axes"], f"{where}.axes", required=names)
    axes = {
        str(name): _knots(knots, f"{where}.axes.{name}")
        for name, knots in _mapping(values["axes"], f"{where}.axes").items()
    }
    tables = {}
    for name, text in _mapping(values["tables"], f"{where}.tables").items():
        pair = str(name).split()
        if len(pair) != 2 or not set(pair) <= names:
            raise InputError(
                f"{where}.tables has a table {name!r}",
                remedy=f"name a table by two of {', '.join(sorted(names))}",
            )
        shape = (len(axes[pair[0]]), len(axes[pair[1]]))
        tables[str(name)] = _table(text, f"{where}.tables.{name}", shape)
    return Ratios(axes=axes, tables=tables)


def _knots(value: object, where: str) -> NDArray[np.float64]:
    """Sizes on one line, rising from above 0."""
    knots = _row(str(value), where)
    if len(knots) < 2 or knots[0] <= 0 or np.any(np.diff(knots) <= 0):
        raise InputError(f"{where} does not rise from above 0", remedy="list the knots in order")
    return knots


def _table(value: object, where: str, shape: tuple[int, int]) -> NDArray[np.float64]:
    """Block text, one row of numbers a line."""
    rows = [_row(line, where) for line in str(value).splitlines()]
    if [len(row) for row in rows] != [shape[1]] * shape[0]:
        raise InputError(
            f"{where} is no table of {shape[0]} rows of {shape[1]} numbers",
            remedy="give one row per knot of its first axis, one column per knot of its second",
        )
    return _positive(np.array(rows), where)


def _row(text: str, where: str) -> NDArray[np.float64]:
    try:
        return np.array([float(item) for item in text.split()])
    except ValueError as error:
        raise InputError(f"{where}: {error}", remedy="write rows of numbers") from error


def _positive(table: NDArray[np.float64], where: str) -> NDArray[np.float64]:
    if not np.all(np.isfinite(table) & (table > 0)):
        raise InputError(
            f"{where} has entries that are not positive", remedy="write numbers above 0"
        )
    return table


def _all_reduce(data: object, where: str) -> AllReduceConstants:
    check_keys(data, where, required={"by_tp"} | _PROVENANCE)
    values = _mapping(data, where)
    by_tp = _mapping(values["by_tp"], f"{where}.by_tp")
    return AllReduceConstants(
        provenance=_provenance(values, where),
        by_tp={
            _whole(tp, f"{where}.by_tp"): _lines(lines, f"{where}.by_tp.{tp}")
            for tp, lines in by_tp.items()
        },
    )


def _lines(data: object, where: str) -> AllReduceLines:
    check_keys(data, where, required={"message_bytes", "us"})
    values = _mapping(data, where)
    sizes = _knots(values["message_bytes"], f"{where}.message_bytes")
    us = _positive(_row(str(values["us"]), f"{where}.us"), f"{where}.us")
    if len(us) != len(sizes):
        raise InputError(
            f"{where} has {len(us)} latencies for {len(sizes)} sizes",
            remedy="give one for each of message_bytes",
        )
    return AllReduceLines(message_bytes=sizes, us=us)


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
    groups = {field.name for field in dataclasses.fields(EngineConstants)}
    check_keys(data, where, required=groups - {"experts"}, optional={"experts"})
    values = _mapping(data, where)

    def gemm(entry: object, place: str) -> GemmConstants:
        return _constants(GemmConstants, entry, place, _GEMM_AXES)

    def prefill(entry: object, place: str) -> PrefillAttentionConstants:
        def kernel(data: object, inside: str) -> PrefillKernel:
            return _constants(PrefillKernel, data, inside, _PREFILL_AXES)

        return PrefillAttentionConstants(**_attention(entry, place, kernel))

    def decode(entry: object, place: str) -> DecodeAttentionConstants:
        def kernel(data: object, inside: str) -> DecodeKernel:
            return _constants(DecodeKernel, data, inside, _DECODE_AXES)

        return DecodeAttentionConstants(**_attention(entry, place, kernel))

    def experts(entry: object, place: str) -> ExpertsConstants:
        return _constants(ExpertsConstants, entry, place, _EXPERTS_AXES)

    reduce = values["all_reduce"]
    engine = EngineConstants(
        version=read_text_value(values["version"], f"{where}.version"),
        gemm=_by_dtype(values["gemm"], f"{where}.gemm", gemm),
        prefill_attention=_by_dtype(
            values["prefill_attention"], f"{where}.prefill_attention", prefill
        ),
        decode_attention=_by_dtype(values["decode_attention"], f"{where}.decode_attention", decode),
        elementwise=_constants(ElementwiseConstants, values["elementwise"], f"{where}.elementwise"),
        all_reduce=None if reduce is None else _all_reduce(reduce, f"{where}.all_reduce"),
        step=_constants(StepConstants, values["step"], f"{where}.step"),
        experts=_by_dtype(values["experts"], f"{where}.experts", experts, EXPERT_BYTES)
        if "experts" in values
        else {},
    )
    served = set(engine.prefill_attention)
    missing = served - engine.gemm.keys() | served ^ engine.decode_attention.keys()
    missing |= {parse_dtype(name).vector_dtype for name in served} - engine.gemm.keys()
    if missing:
        raise InputError(
            f"{where}: {', '.join(sorted(missing))} constants are incomplete",
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
