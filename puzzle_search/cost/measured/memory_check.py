"""Bytes as a profile's allocator had them against the closed forms that costs are computed with."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

from puzzle_search.arch import ParentConfig, parse_variant
from puzzle_search.cost.measured.profile_rows import EMBEDDING, HEAD, MemoryRow
from puzzle_search.cost.memory import Dtype, kv_bytes_per_token, weight_bytes
from puzzle_search.errors import InputError


def check_memory(rows: Iterable[MemoryRow], config: ParentConfig, dtype: Dtype, file: Path) -> None:
    """Check weights and KV cache to the byte.

    Args:
        rows: of the profile, in the order of the file.
        config: the parent.
        dtype: serving precision.
        file: of the rows, for the message.

    Raises:
        InputError: a variant stands twice, or has other bytes; names file and row.
    """
    seen: set[tuple[str, str, int]] = set()
    for number, row in enumerate(rows, start=2):
        if (row.subblock, row.variant, row.tp) in seen:
            raise InputError(
                f"{file}, row {number}: {row.subblock} {row.variant}, tp {row.tp} stands twice",
                remedy="measure again",
            )
        seen.add((row.subblock, row.variant, row.tp))
        weights, kv_bytes = _expected(row, config, dtype)
        for name, measured, expected in (
            ("weight_bytes", row.weight_bytes, weights),
            ("kv_bytes_per_token", row.kv_bytes_per_token, kv_bytes),
        ):
            if measured != expected:
                raise InputError(
                    f"{file}, row {number}: {name} of {row.subblock} {row.variant}, tp {row.tp} "
                    f"is {measured}, by its shapes in {dtype.name} {expected}",
                    remedy="measure again with this version, and with the model and dtype that "
                    "profile.yaml names",
                )


def _expected(row: MemoryRow, config: ParentConfig, dtype: Dtype) -> tuple[int, int]:
    if row.subblock != "outside":
        variant = parse_variant(row.subblock, row.variant)
        weights = weight_bytes(variant, config, dtype, row.tp)
        return weights, kv_bytes_per_token(variant, config, dtype, row.tp)
    values = math.ceil(config.vocab_size * config.hidden_size / row.tp)
    table = math.ceil(values * dtype.table_bytes)
    if row.variant == EMBEDDING:
        return table, 0
    if row.variant == HEAD:
        norm = config.hidden_size * dtype.vector_bytes
        return norm + (0 if config.tie_embeddings else table), 0
    return 0, 0
