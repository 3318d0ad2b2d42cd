"""The tables of Puzzletron, the search of NVIDIA Model-Optimizer (``modelopt/torch/puzzletron``).

``replacement_library.json`` lists every replacement, ``subblock_stats.json`` the costs of every
subblock at each operating point, and one ``solution_<n>.json`` a replacement its scores, beside
``teacher.json`` with those of the parent.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from puzzle_search.arch import Subblock
from puzzle_search.cost.block_costs import BlockCost, OutsideCost
from puzzle_search.errors import InputError
from puzzle_search.files import (
    check_record,
    file_hash,
    parse_json,
    read_json,
    read_text,
    value_hash,
)
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

_LIBRARY = "replacement_library.json"
_STATS = "subblock_stats.json"
_SCORES = "single_sequence_replacement_solutions--validation"
_REMEDY = f"name a puzzle_dir of Puzzletron, which holds {_LIBRARY}, {_STATS} and {_SCORES}"
_NOTES = "memory is what Puzzletron computes from shapes and dtypes"
_NO_RUNTIME = "; it measured no runtimes at this operating point"
_CLASSES: dict[str, Subblock] = {"AttentionConfig": "attention", "FFNConfig": "ffn"}
# What this package has no variant for, whatever the value.
_UNSUPPORTED = ("mamba", "llama4", "moe", "sparsify")

_Pair = tuple[str, str]
_Costs = dict[tuple[Subblock, str, int | None], Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """Which of several operating points to take; what is None, or not named, may be anything.

    Attributes:
        batch: sequences at a time.
        prefill_len: input tokens of a sequence.
        generation_len: output tokens of a sequence.
        others: further ``args`` of ``subblock_stats.json`` by name, as text.
    """

    batch: int | None = None
    prefill_len: int | None = None
    generation_len: int | None = None
    others: Mapping[str, str] | None = None

    def asked(self) -> dict[str, str]:
        """What is asked, by the source's names."""
        sizes = {
            "batch_size": self.batch,
            "prefill_seq_len": self.prefill_len,
            "generation_seq_len": self.generation_len,
        }
        given = {name: str(size) for name, size in sizes.items() if size is not None}
        return given | dict(self.others or {})


def import_puzzletron(folder: str | Path, measurement: Measurement | None = None) -> ImportedTables:
    """Read the tables of a Puzzletron run.

    Args:
        folder: its ``puzzle_dir``; the scores are in the folder where it puts them.
        measurement: picks one operating point where the run has several.

    Raises:
        InputError: a file is missing, a block is of a kind that this package does not know, a
            replacement has no score, or several operating points fit.
    """
    source = Path(folder)
    files = [source / _LIBRARY, source / _STATS]
    stats = _pick(_read_list(files[1]), measurement or Measurement(), files[1])
    args = mapping(stats["args"], f"{files[1]}, args")
    costs = _subblock_costs(stats, files[1])
    blocks = _library(_read_list(files[0]), files[0])
    scores, hashes = _scores(source / _SCORES, blocks)
    parents = _parents(blocks, scores, files[0])
    block_costs = [_block_cost(layer, pair, costs, files[1]) for layer, pair in blocks]
    _check_parents(parents, block_costs, files[0])
    rows = [row for replacement in scores.values() for row in replacement]
    rows += _parent_rows(source / _SCORES / "teacher.json", parents, rows)
    timed = all(cost.runtime_us is not None for cost in block_costs)
    where, place = f"{files[1]}, args", f"{files[1]}, non_block"
    outside = mapping(stats.get("non_block"), place)
    layers = {layer for layer, _ in blocks}
    return build_tables(
        files[0],
        rows,
        score_sidecar(
            parent=source.resolve().name,
            data="see args of the solution files",
            made_by=f"puzzle-search import puzzletron, scores {value_hash(hashes)}",
            notes="stderr is not taken from the source, nor tokens, which are 0",
        ),
        rows=block_costs,
        outside=check_record(
            OutsideCost,
            {
                "memory_bytes": mib_as_bytes(outside, "memory_mib", place),
                "runtime_us": _runtime_us(outside, place) or 0.0,
                "parameters": whole(outside, "num_params", place),
            },
            place,
        ),
        source=f"Puzzletron run {source.resolve().name}",
        inputs={file.name: file_hash(file) for file in files} | {_SCORES: value_hash(hashes)},
        evidence="measured",
        gpu=str(args["gpu"]) if args.get("gpu") else None,
        dtype=_dtype(args),
        batch=whole(args, "batch_size", where),
        sequence_length=whole(args, "prefill_seq_len", where)
        + whole(args, "generation_seq_len", where),
        num_layers=len(layers),
        parent=next(iter(parents.values())) if len(parents) == len(layers) else None,
        notes=_NOTES + ("" if timed else _NO_RUNTIME),
    )


def _read_list(file: Path) -> list[Any]:
    text = read_text(file, remedy=_REMEDY)
    try:
        data = parse_json(text)
    except ValueError as error:
        raise InputError(f"{file} is not JSON: {error}", remedy=_REMEDY) from error
    if not isinstance(data, list) or not data:
        raise InputError(
            f"{file} is not a JSON list",
            remedy="import the output of a Puzzletron release that writes a list there (0.4x)",
        )
    return data


def _pick(entries: list[Any], measurement: Measurement, file: Path) -> Mapping[str, Any]:
    """The one entry whose args are those asked."""
    found = [
        (mapping(entry, f"{file}, entry {n}"), mapping(entry.get("args"), f"{file}, entry {n}"))
        for n, entry in enumerate(entries)
    ]
    asked = measurement.asked()
    fitting = [
        (entry, args)
        for entry, args in found
        if all(str(args.get(name)) == value for name, value in asked.items())
    ]
    if len(fitting) == 1:
        return fitting[0][0]
    shown = [args for _, args in fitting or found]
    names = [
        name
        for name in dict.fromkeys(name for args in shown for name in args)
        if len({str(args.get(name)) for args in shown}) > 1 or name in asked
    ]
    lines = [", ".join(f"{name}={args.get(name)}" for name in names) for args in shown]
    wanted = ", ".join(f"{name}={value}" for name, value in asked.items()) or "no choice made"
    raise InputError(
        f"{file}: {len(fitting) or 'none'} of {len(found)} measurements fit ({wanted}):\n    "
        + "\n    ".join(lines),
        remedy="choose one with --batch, --prefill, --generation and --where NAME=VALUE",
    )


def _variant(subblock: Subblock, config: Mapping[str, Any], where: str) -> str:
    if config.get("no_op"):
        return "no_op"
    if config.get("replace_with_linear"):
        return "linear"
    unsupported = [name for name in _UNSUPPORTED if config.get(name)]
    if unsupported:
        raise InputError(
            f"{where}: {subblock} has {', '.join(unsupported)}, which this package does not know",
            remedy="import a search over KV heads and FFN widths",
        )
    if subblock == "attention":
        return f"gqa_{whole(config, 'num_key_value_heads', where)}"
    return f"mlp_{whole(config, 'intermediate_size', where)}"


def _pair(config: object, where: str) -> _Pair:
    block = mapping(config, where)
    if block.get("parallel_blocks"):
        raise InputError(
            f"{where}: parallel blocks are not known", remedy="import a search without them"
        )
    return (
        _variant("attention", mapping(block.get("attention"), f"{where}, attention"), where),
        _variant("ffn", mapping(block.get("ffn"), f"{where}, ffn"), where),
    )


def _replacement(data: object, where: str) -> tuple[int, _Pair]:
    """Layer and variants of a replacement."""
    entry = mapping(data, where)
    layers, children = entry.get("parent_layer_indices"), entry.get("child_block_configs")
    if (
        not isinstance(layers, list)
        or not isinstance(children, list)
        or len(layers) != 1
        or len(children) != 1
        or type(layers[0]) is not int
    ):
        raise InputError(
            f"{where}: not a replacement of one layer by one block",
            remedy="import a run whose replacements stand for one layer each",
        )
    return layers[0], _pair(children[0], where)


def _library(entries: list[Any], file: Path) -> list[tuple[int, _Pair]]:
    """Layer and variants of all replacements, by layer."""
    blocks = [_replacement(entry, f"{file}, entry {n}") for n, entry in enumerate(entries)]
    return sorted(dict.fromkeys(blocks), key=lambda block: block[0])


def _subblock_costs(stats: Mapping[str, Any], file: Path) -> _Costs:
    """Costs by kind, variant and layer; layer None stands for any."""
    subblocks = stats.get("subblocks")
    if not isinstance(subblocks, list):
        raise InputError(f"{file}: subblocks is not a list", remedy=_REMEDY)
    costs: _Costs = {}
    for number, entry in enumerate(subblocks):
        where = f"{file}, subblock {number}"
        data = mapping(entry, where)
        kind = _CLASSES.get(str(data.get("subblock_config_class")))
        if kind is None:
            raise InputError(
                f"{where}: class {data.get('subblock_config_class')!r} is not known",
                remedy=f"use {' or '.join(_CLASSES)}",
            )
        variant = _variant(kind, mapping(data.get("subblock_config"), where), where)
        layer = data.get("parent_layer_index")
        if layer is not None and type(layer) is not int:
            raise InputError(
                f"{where}: parent_layer_index is {layer!r:.80}, no layer", remedy=_REMEDY
            )
        costs[kind, variant, layer] = data
    return costs


def _dtype(args: Mapping[str, Any]) -> str:
    """One word where all precisions are the same, else each with what it is for."""
    names = {"weights": "weights_dtype", "activations": "activations_dtype", "KV": "kv_cache_dtype"}
    given = {what: str(args.get(key)).removeprefix("torch.") for what, key in names.items()}
    if len(set(given.values())) == 1:
        return given["weights"]
    return ", ".join(f"{what} {dtype}" for what, dtype in given.items())


def _runtime_us(data: Mapping[str, Any], where: str) -> float | None:
    return None if data.get("runtime_ms") is None else finite(data, "runtime_ms", where) * 1e3


def _block_cost(layer: int, pair: _Pair, costs: _Costs, file: Path) -> BlockCost:
    """A block costs what its subblocks cost together."""
    parts = []
    for kind, variant in zip(_CLASSES.values(), pair, strict=True):
        data = costs.get((kind, variant, layer), costs.get((kind, variant, None)))
        where = f"{file}, layer {layer}, {variant}"
        if data is None:
            raise InputError(
                f"{where}: no such {kind}", remedy="run Puzzletron's calc_subblock_stats again"
            )
        parts.append(
            (
                mib_as_bytes(data, "memory_mib", where),
                _runtime_us(data, where),
                whole(data, "num_params", where),
            )
        )
    (memory_a, runtime_a, size_a), (memory_f, runtime_f, size_f) = parts
    return BlockCost(
        first_layer=layer,
        last_layer=layer,
        attention=pair[0],
        ffn=pair[1],
        memory_bytes=memory_a + memory_f,
        runtime_us=None if runtime_a is None or runtime_f is None else runtime_a + runtime_f,
        parameters=size_a + size_f,
    )


def _averages(data: Mapping[str, Any], where: str) -> dict[str, float]:
    """Metrics are the entries that have an average; beside them stand arguments and the like."""
    return {
        name: finite(value, "avg", f"{where}, {name}")
        for name, value in data.items()
        if isinstance(value, dict) and "avg" in value
    }


def _scores(
    folder: Path, blocks: list[tuple[int, _Pair]]
) -> tuple[dict[tuple[int, _Pair], list[ScoreRow]], dict[str, str]]:
    """Score rows by replacement, and the hash of each file."""
    known = set(blocks)
    scores: dict[tuple[int, _Pair], list[ScoreRow]] = {}
    hashes: dict[str, str] = {}
    for file in sorted(folder.glob("solution_*.json")):
        data = read_json(file, remedy=_REMEDY)
        solution = mapping(data.get("puzzle_solution"), f"{file}, puzzle_solution")
        replacement = solution.get("single_sequence_replacement")
        block = _replacement(replacement, f"{file}, single_sequence_replacement")
        layer, pair = block
        described = f"layer {layer}, {pair[0]} and {pair[1]}"
        if block not in known:
            raise InputError(
                f"{file}: {described} is not in {_LIBRARY}",
                remedy="import files of one and the same run",
            )
        if block in scores:
            raise InputError(
                f"{file}: {described} is scored a second time", remedy="remove one of the files"
            )
        scores[block] = score_rows(layer, pair, _averages(data, str(file)), str(file))
        hashes[file.name] = file_hash(file)
    if not scores:
        raise InputError(f"{folder} holds no solution_<n>.json", remedy=_REMEDY)
    return scores, hashes


def _parents(
    blocks: list[tuple[int, _Pair]], scores: Mapping[tuple[int, _Pair], Any], file: Path
) -> dict[int, _Pair]:
    """The parent's own block of each layer: the one that was not scored, as no replacement."""
    unscored: dict[int, list[_Pair]] = {}
    for layer, pair in blocks:
        if (layer, pair) not in scores:
            unscored.setdefault(layer, []).append(pair)
    for layer, pairs in unscored.items():
        if len(pairs) > 1:
            raise InputError(
                f"{file}: layer {layer} has {len(pairs)} blocks without a score, of which only "
                f"the parent's own needs none: {', '.join(' and '.join(pair) for pair in pairs)}",
                remedy="let Puzzletron's scoring run to its end",
            )
    return {layer: pairs[0] for layer, pairs in unscored.items()}


def _check_parents(parents: Mapping[int, _Pair], costs: list[BlockCost], file: Path) -> None:
    """Where the library lacks the parent's block, what has no score is a replacement, not it."""
    largest = {row.first_layer: row for row in sorted(costs, key=lambda row: row.parameters)}
    sizes = {(row.first_layer, (row.attention, row.ffn)): row.parameters for row in costs}
    usual = Counter(parents.values()).most_common(1)
    for layer, pair in parents.items():
        if sizes[layer, pair] < largest[layer].parameters or pair != usual[0][0]:
            raise InputError(
                f"{file}: layer {layer} has no score for {' and '.join(pair)}, which is not the "
                "parent's own block: another is larger, or the other layers have another",
                remedy="let Puzzletron's scoring run to its end, with the parent's block of every "
                "layer in the library",
            )


def _parent_rows(file: Path, parents: dict[int, _Pair], scored: list[ScoreRow]) -> list[ScoreRow]:
    """Rows of the parent's own blocks: its own loss, and no distance to itself."""
    metrics = _averages(read_json(file, remedy=_REMEDY), str(file))
    every = dict.fromkeys(row.metric for row in scored)
    rows = []
    for layer, pair in parents.items():
        given = {row.metric: row for row in score_rows(layer, pair, metrics, str(file))}
        rows += [
            given.get(metric)
            or ScoreRow(
                first_layer=layer,
                last_layer=layer,
                attention=pair[0],
                ffn=pair[1],
                metric=metric,
                value=0.0,
                stderr=None,
                tokens=0,
            )
            for metric in every
        ]
    return rows
