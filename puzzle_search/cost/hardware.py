"""A GPU as the cost model sees it: its data sheet and the constants calibrated for each engine.

One YAML file per GPU, ``format: puzzle-search.cost-model/1``. Every group of constants says where
it comes from (``evidence``, ``source``) and how far it is from points that it was not fitted on
(``error_median``, ``error_p90``, relative). Reading is strict: a cost model that is incomplete or
that beats the hardware is an error, not a surprise in the answer.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar, get_args

import numpy as np
import yaml
from numpy.typing import NDArray

from puzzle_search.cost.constants import (
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
)
from puzzle_search.cost.latency import Evidence
from puzzle_search.errors import InputError
from puzzle_search.files import check_keys, read_yaml
from puzzle_search.resources import resource

FORMAT = "puzzle-search.cost-model/1"
DTYPES = ("bf16", "fp8")

# Evidence that needs no points beside it: nothing was fitted.
_NOT_FITTED = ("datasheet", "reconstructed")


@dataclass(frozen=True, kw_only=True)
class CostModel:
    """The data sheet of a GPU and its constants by engine."""

    gpu: str
    sheet: Sheet
    engines: Mapping[str, EngineConstants]

    @property
    def memory_limit_bytes(self) -> int:
        """Bytes left for weights, KV cache and activations."""
        return self.sheet.memory_limit_bytes

    def engine(self, name: str) -> EngineConstants:
        """The constants of an engine.

        Raises:
            InputError: the engine was not calibrated on this GPU.
        """
        if name not in self.engines:
            raise InputError(
                f"the cost model of {self.gpu} has no engine {name!r}",
                remedy=f"use one of {', '.join(self.engines)}, or profile the GPU",
            )
        return self.engines[name]

    @classmethod
    def from_file(cls, path: str | Path) -> CostModel:
        """Read a cost model.

        Raises:
            InputError: unknown or missing keys, values that are no finite non-negative numbers,
                fractions above 1, or missing evidence.
        """
        data = read_yaml(path, format=FORMAT)
        check_keys(data, path, required={"format", "gpu", "sheet", "engines"})
        where = str(path)
        engines = _mapping(data["engines"], f"{where}, engines")
        return cls(
            gpu=_text(data["gpu"], f"{where}, gpu"),
            sheet=_sheet(data["sheet"], f"{where}, sheet"),
            engines={
                str(name): _engine(engine, f"{where}, engines.{name}")
                for name, engine in engines.items()
            },
        )

    def to_yaml(self) -> str:
        """The cost model as its file holds it, numbers to five digits."""
        data = {"format": FORMAT} | _plain(self)
        return yaml.dump(data, Dumper=_FlowListDumper, sort_keys=False, width=100)


class _FlowListDumper(yaml.SafeDumper):
    """Lists on one line, so that a table reads as rows."""

    def represent_flow_list(self, data: list[Any]) -> yaml.Node:
        flow = not any(isinstance(item, list) for item in data)
        return self.represent_sequence("tag:yaml.org,2002:seq", data, flow_style=flow)


_FlowListDumper.add_representer(list, _FlowListDumper.represent_flow_list)


def _plain(value: Any) -> Any:
    """Dataclasses to mappings, with provenance among a group's own keys; floats to five digits."""
    if dataclasses.is_dataclass(value):
        plain: dict[str, Any] = {}
        for field in dataclasses.fields(value):
            item = _plain(getattr(value, field.name))
            plain |= item if field.name == "provenance" else {field.name: item}
        return plain
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return [_plain(item) for item in value.tolist()]
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value


def known_gpus() -> list[str]:
    """Names of the GPUs that a cost model ships for."""
    return sorted(path.stem for path in resource("cost_models").glob("*.yaml"))


def find_cost_model(gpu: str) -> Path:
    """Path of the shipped cost model of a GPU; the name is case-insensitive.

    Raises:
        InputError: no cost model ships for that GPU.
    """
    name = gpu.lower()
    if name not in known_gpus():
        raise InputError(
            f"no cost model for GPU {gpu!r}",
            remedy=f"use one of {', '.join(known_gpus())}, or give the path of a {FORMAT} file",
        )
    return resource("cost_models", f"{name}.yaml")


@lru_cache(maxsize=8)
def load_cost_model(gpu: str) -> CostModel:
    """The shipped cost model of a GPU, read once.

    Raises:
        InputError: no cost model ships for that GPU, or its file cannot be used.
    """
    return CostModel.from_file(find_cost_model(gpu))


# --- strict reading -------------------------------------------------------------------------

_PROVENANCE = {"evidence", "source", "error_median", "error_p90"}
_Constants = TypeVar(
    "_Constants",
    GemmConstants,
    PrefillAttentionConstants,
    ElementwiseConstants,
    AllReduceLines,
    StepConstants,
)
_Value = TypeVar("_Value")


def _text(value: object, where: str) -> str:
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
    return Provenance(evidence=evidence, source=_text(data["source"], f"{where}.source"), **errors)


def _constants(kind: type[_Constants], data: object, where: str) -> _Constants:
    """Read a flat group: its own fields are numbers, beside them its provenance."""
    fields = {field.name: field.type for field in dataclasses.fields(kind)}
    proven = fields.pop("provenance", None) is not None
    check_keys(data, where, required=set(fields) | (_PROVENANCE if proven else set()))
    values = _mapping(data, where)
    readers: dict[str, Any] = {
        name: (_whole if kind_of == "int" else _number)(values[name], f"{where}.{name}")
        for name, kind_of in fields.items()
    }
    if proven:
        readers["provenance"] = _provenance(values, where)
    return kind(**readers)


def _by_dtype(data: object, where: str, read: Callable[[object, str], _Value]) -> dict[str, _Value]:
    check_keys(data, where, required=set(DTYPES))
    values = _mapping(data, where)
    return {dtype: read(values[dtype], f"{where}.{dtype}") for dtype in DTYPES}


def _sheet(data: object, where: str) -> Sheet:
    fields = {field.name for field in dataclasses.fields(Sheet)} - {"provenance"}
    check_keys(data, where, required=fields | _PROVENANCE)
    values = _mapping(data, where)
    sheet = Sheet(
        provenance=_provenance(values, where),
        hbm_bytes=_whole(values["hbm_bytes"], f"{where}.hbm_bytes"),
        reserve_bytes=_whole(values["reserve_bytes"], f"{where}.reserve_bytes"),
        num_sms=_whole(values["num_sms"], f"{where}.num_sms"),
        flops_per_second=_by_dtype(values["flops_per_second"], f"{where}.flops_per_second", _rate),
        hbm_bytes_per_second=_rate(values["hbm_bytes_per_second"], f"{where}.hbm_bytes_per_second"),
        link_bytes_per_second=_rate(
            values["link_bytes_per_second"], f"{where}.link_bytes_per_second"
        ),
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
    ratio = _numbers(values["ratio"], f"{where}.ratio")
    if ratio.shape != shape or np.any(ratio == 0):
        raise InputError(
            f"{where}.ratio is no table of positive numbers, {shape[0]} rows of {shape[1]}",
            remedy="give one row per knot of work_log2, one column per knot of context_log2",
        )
    return DecodeGroup(
        ratio=ratio, **{name: _number(values[name], f"{where}.{name}") for name in numbers}
    )


def _numbers(value: object, where: str) -> NDArray[np.float64]:
    """A list of numbers, or a list of such lists of one length."""
    if not isinstance(value, list) or not value:
        raise InputError(f"{where} is {value!r}", remedy="write a list of numbers")
    rows = [
        _numbers(item, f"{where}[{index}]")
        if isinstance(item, list)
        else np.float64(_number(item, f"{where}[{index}]"))
        for index, item in enumerate(value)
    ]
    if len({np.shape(row) for row in rows}) > 1:
        raise InputError(f"{where} has rows of unequal length", remedy="complete the short rows")
    return np.array(rows, dtype=np.float64)


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


def _engine(data: object, where: str) -> EngineConstants:
    check_keys(data, where, required={field.name for field in dataclasses.fields(EngineConstants)})
    values = _mapping(data, where)

    def gemm(entry: object, place: str) -> GemmConstants:
        return _constants(GemmConstants, entry, place)

    def prefill(entry: object, place: str) -> PrefillAttentionConstants:
        return _constants(PrefillAttentionConstants, entry, place)

    return EngineConstants(
        version=_text(values["version"], f"{where}.version"),
        gemm=_by_dtype(values["gemm"], f"{where}.gemm", gemm),
        prefill_attention=_by_dtype(
            values["prefill_attention"], f"{where}.prefill_attention", prefill
        ),
        decode_attention=_by_dtype(
            values["decode_attention"], f"{where}.decode_attention", _decode_attention
        ),
        elementwise=_constants(ElementwiseConstants, values["elementwise"], f"{where}.elementwise"),
        all_reduce=_all_reduce(values["all_reduce"], f"{where}.all_reduce"),
        step=_constants(StepConstants, values["step"], f"{where}.step"),
    )
