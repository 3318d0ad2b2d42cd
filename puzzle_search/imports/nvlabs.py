"""The block library of the NVlabs/puzzle demonstration (Puzzle, arXiv 2411.19146).

``block_library.json`` holds ``layer_<n>`` -> description of a block -> ``stats`` and ``metrics``;
``measurement_info.json`` the operating point; ``parent_block_stats.json`` the parent's own block.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from puzzle_search.arch import Subblock
from puzzle_search.cost.block_costs import BlockCost, OutsideCost
from puzzle_search.errors import InputError
from puzzle_search.files import file_hash, read_json
from puzzle_search.imports.tables import (
    ImportedTables,
    build_tables,
    finite,
    mapping,
    mib_as_bytes,
    score_rows,
    score_sidecar,
    whole,
)
from puzzle_search.solve.problem.score_table import ScoreRow

_LIBRARY = "block_library.json"
_INFO = "measurement_info.json"
_PARENT = "parent_block_stats.json"
_REMEDY = f"name a folder of NVlabs/puzzle, which holds {_LIBRARY}, {_INFO} and {_PARENT}"
_NOTES = (
    "memory and runtime are sums over blocks; the source says nothing of embedding and head, "
    "nor of the tokens that were scored"
)
_PREFIX = {"attention": "gqa", "ffn": "mlp"}
_SIZE_KEY = {"attention": "num_kv_heads", "ffn": "ffn_intermediate_size"}


def import_nvlabs(folder: str | Path) -> ImportedTables:
    """Read the block library of NVlabs/puzzle.

    Args:
        folder: holds ``block_library.json``, ``measurement_info.json`` and
            ``parent_block_stats.json``.

    Raises:
        InputError: a file is missing, or a block is described in words that are not known.
    """
    source = Path(folder)
    files = [source / name for name in (_LIBRARY, _INFO, _PARENT)]
    library, info, parent = (read_json(file, remedy=_REMEDY) for file in files)
    described = mapping(parent.get("stats"), f"{files[2]}, stats")
    costs: list[BlockCost] = []
    scores: list[ScoreRow] = []
    for name, blocks in library.items():
        where = f"{files[0]}, {name}"
        match = re.fullmatch(r"layer_([0-9]{1,6})", name)
        if match is None:
            raise InputError(f"{where} is not a layer", remedy="name layers layer_0, layer_1, ...")
        layer = int(match[1])
        for text, block in mapping(blocks, where).items():
            place = f"{where}, {text.replace(chr(9), ' ')}"
            entry = mapping(block, place)
            stats = mapping(entry.get("stats"), f"{place}, stats")
            pair = _pair(text, stats, place)
            costs.append(_cost(layer, pair, stats, place))
            metrics = mapping(entry.get("metrics"), f"{place}, metrics")
            scores += score_rows(layer, pair, metrics, place)
    for key in ("gpu", "dtype"):
        if not isinstance(info.get(key), str):
            raise InputError(f"{files[1]}: {key} is not a text", remedy=_REMEDY)
    return build_tables(
        files[0],
        scores,
        score_sidecar(
            parent=source.resolve().name,
            data="not told by the source",
            made_by=f"puzzle-search import nvlabs, {_LIBRARY} {file_hash(files[0])}",
            notes="the source has no stderr and no tokens, which are 0",
        ),
        rows=costs,
        outside=OutsideCost(memory_bytes=0, runtime_us=0, parameters=0),
        source=f"NVlabs/puzzle block library of {source.resolve().name}",
        inputs={file.name: file_hash(file) for file in files},
        evidence="measured",
        gpu=info["gpu"],
        dtype=info["dtype"],
        batch=whole(info, "batch_size", str(files[1])),
        sequence_length=whole(info, "sequence_length", str(files[1])),
        num_layers=len(library),
        parent=(
            _variant("attention", "", described, str(files[2])),
            _variant("ffn", "", described, str(files[2])),
        ),
        notes=_NOTES,
    )


def _pair(text: str, stats: Mapping[str, Any], where: str) -> tuple[str, str]:
    """Both variants of ``attention = <words> && ffn = <words>``."""
    match = re.fullmatch(r"attention = (.+?)\s+&&\s+ffn = (.+)", text)
    if match is None:
        raise InputError(
            f"{where}: not a description of a block", remedy="write 'attention = ... && ffn = ...'"
        )
    return _variant("attention", match[1], stats, where), _variant("ffn", match[2], stats, where)


def _variant(subblock: Subblock, words: str, stats: Mapping[str, Any], where: str) -> str:
    """Sizes are taken from the stats, since the words round them (``14e3`` is 14336)."""
    first = words.partition(" ")[0]
    if first in ("no_op", "linear"):
        return first
    size = whole(stats, _SIZE_KEY[subblock], where)
    if size == 0:
        raise InputError(
            f"{where}: {_SIZE_KEY[subblock]} is 0, but {subblock} is not called no_op or linear",
            remedy="correct the description or the size",
        )
    return f"{_PREFIX[subblock]}_{size}"


def _cost(layer: int, pair: tuple[str, str], stats: Mapping[str, Any], where: str) -> BlockCost:
    return BlockCost(
        first_layer=layer,
        last_layer=layer,
        attention=pair[0],
        ffn=pair[1],
        memory_bytes=mib_as_bytes(stats, "memory_mib", where),
        runtime_us=finite(stats, "runtime_ms", where) * 1e3,
        parameters=whole(stats, "num_params", where),
    )
