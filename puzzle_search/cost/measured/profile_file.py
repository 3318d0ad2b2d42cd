"""A profile's folder: three tables, and the sidecar that describes and vouches for them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from puzzle_search.arch import ParentConfig
from puzzle_search.cost.measured.profile_rows import (
    GroupRow,
    LatencyRow,
    MemoryRow,
    read_groups,
    read_latency,
    read_memory,
    to_csv,
)
from puzzle_search.cost.memory import parse_dtype
from puzzle_search.errors import InputError
from puzzle_search.files import check_keys, file_hash, read_yaml, write_text

FORMAT = "puzzle-search.profile/2"
TABLES = ("latency", "memory", "groups")

_HASHES = {f"{table}_sha256" for table in TABLES}
_KEYS = {
    "format", "package_version", "evidence", "date", "device", "engine", "dtype", "model",
    "parent_config", "memory_limit_bytes", "prefill_chunk_tokens", "ceilings", "skipped",
    "interpolation",
}  # fmt: skip
_REMEDY = "measure again; a profile is never edited"

Tables = tuple[list[LatencyRow], list[MemoryRow], list[GroupRow]]


def read_profile(folder: Path) -> tuple[Tables, dict[str, Any]]:
    """The tables and the sidecar of a profile.

    Raises:
        InputError: a file is missing, has unknown columns or keys or wrong values, or a table is
            not the one that the sidecar vouches for; names file and row.
    """
    file = folder / "profile.yaml"
    sidecar = read_yaml(file, format=FORMAT)
    check_keys(sidecar, file, required=_KEYS | _HASHES)
    _check_sidecar(sidecar, file)
    tables = (
        read_latency(folder / "latency.csv"),
        read_memory(folder / "memory.csv"),
        read_groups(folder / "groups.csv"),
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
    write_text(folder / "latency.csv", to_csv(LatencyRow, rows))
    write_text(folder / "memory.csv", to_csv(MemoryRow, memory))
    write_text(folder / "groups.csv", to_csv(GroupRow, groups))
    hashes = {f"{table}_sha256": file_hash(folder / f"{table}.csv") for table in TABLES}
    whole = {key: value for key, value in sidecar.items() if key not in _HASHES} | hashes
    write_text(folder / "profile.yaml", yaml.safe_dump(whole, sort_keys=False))
    return whole


def _check_sidecar(sidecar: dict[str, Any], file: Path) -> None:
    def wrong(key: str, wanted: str) -> InputError:
        return InputError(f"{file}: {key} is not {wanted}", remedy=_REMEDY)

    for key in ("evidence", "date", "engine", "dtype", "model"):
        if not isinstance(sidecar[key], str):
            raise wrong(key, "a text")
    parse_dtype(sidecar["dtype"])
    for key in ("memory_limit_bytes", "prefill_chunk_tokens"):
        if not _is_number(sidecar[key], int) or sidecar[key] < 1:
            raise wrong(key, "a positive whole number")
    device = sidecar["device"]
    if not isinstance(device, dict) or not isinstance(device.get("name"), str):
        raise wrong("device", "a mapping with a name")
    if not _is_number(device.get("memory_bytes"), int):
        raise wrong("device", "a mapping with its memory_bytes")
    if not isinstance(sidecar["parent_config"], dict):
        raise wrong("parent_config", "the mapping of a config.json")
    ParentConfig.from_dict(
        sidecar["parent_config"], name=sidecar["model"], where=f"{file}, parent_config"
    )
    ceilings = sidecar["ceilings"]
    check_keys(
        ceilings,
        f"{file}, ceilings",
        required={"copy_bytes_per_second", "matmul_flops_per_second"},
    )
    rates = ceilings["matmul_flops_per_second"]
    if not isinstance(rates, dict) or not all(map(_is_rate, rates.values())):
        raise wrong("matmul_flops_per_second", "a mapping of dtypes to positive rates")
    copied = ceilings["copy_bytes_per_second"]
    if copied is not None and not _is_rate(copied):
        raise wrong("copy_bytes_per_second", "a positive rate, or null where none was measured")
    if not isinstance(sidecar["skipped"], list):
        raise wrong("skipped", "a list")
    for number, point in enumerate(sidecar["skipped"]):
        check_keys(point, f"{file}, skipped {number}", required={"point", "why"})
    held_out = sidecar["interpolation"]
    check_keys(held_out, f"{file}, interpolation", required={"points", "median", "p90", "worst"})
    if not _is_number(held_out["points"], int):
        raise wrong("interpolation: points", "a whole number")
    for key in ("median", "p90", "worst"):
        known = _is_number(held_out[key], int, float)
        if not known and not (held_out[key] is None and held_out["points"] == 0):
            raise wrong(f"interpolation: {key}", "a relative error")


def _is_number(value: object, *types: type) -> bool:
    return isinstance(value, types) and not isinstance(value, bool)


def _is_rate(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0
