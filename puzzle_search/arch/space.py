"""The search space: which variants each layer may take."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from puzzle_search.arch.config import ParentConfig
from puzzle_search.arch.variants import (
    STOCK_WIDTH_MULTIPLE,
    Gqa,
    Mlp,
    NoOp,
    Subblock,
    Variant,
    check_variant,
    parse_variant,
)
from puzzle_search.arch.weight_types import WEIGHT_BYTES, shape_of, with_weights
from puzzle_search.errors import InputError
from puzzle_search.files import check_keys, read_yaml

FORMAT = "puzzle-search.search-space/1"

# First and last layer, attention, FFN. In a single layer an empty name means the parent's own
# subblock; one block in the place of several layers names both of its variants.
Replacement = tuple[int, int, str, str]


def canonical(replacement: Replacement, config: ParentConfig) -> Replacement:
    """A replacement with the parent's own subblocks of a single layer as empty names."""
    first, last, attention, ffn = replacement
    if first < last:
        return replacement
    attention = "" if attention == config.own("attention", first) else attention
    return first, last, attention, "" if ffn == config.ffn else ffn


@dataclass(frozen=True, kw_only=True)
class SearchSpace:
    """Allowed attention and FFN variants, one tuple a layer; the parent's own are always there.

    ``runs`` are single blocks that may stand for several consecutive layers.
    """

    attention: tuple[tuple[str, ...], ...]
    ffn: tuple[tuple[str, ...], ...]
    runs: tuple[Replacement, ...] = ()

    @property
    def num_layers(self) -> int:
        """Layers of the parent."""
        return len(self.attention)

    def variants(self, subblock: Subblock) -> tuple[tuple[str, ...], ...]:
        """Allowed variants of one subblock, by layer."""
        return self.attention if subblock == "attention" else self.ffn

    def all_variants(self, subblock: Subblock) -> list[str]:
        """Every variant that some layer allows, in order of first mention."""
        return list(dict.fromkeys(v for layer in self.variants(subblock) for v in layer))

    def replacements(self, config: ParentConfig, *, composed: bool = True) -> Iterator[Replacement]:
        """Everything that may take the place of a parent's block, by layer; then the runs.

        Args:
            config: the parent.
            composed: pairs in which both subblocks differ from the parent's, too.
        """
        for layer in range(self.num_layers):
            for attention in self.attention[layer]:
                for ffn in self.ffn[layer]:
                    own = (attention == config.own("attention", layer), ffn == config.ffn)
                    if own == (True, True) or (own == (False, False) and not composed):
                        continue
                    yield layer, layer, "" if own[0] else attention, "" if own[1] else ffn
        yield from self.runs

    @classmethod
    def uniform(cls, config: ParentConfig, *, attention: list[str], ffn: list[str]) -> SearchSpace:
        """The same variants for every layer; see `from_file` of those that have windows.

        Raises:
            InputError: a variant is unknown, listed twice, or does not fit the parent.
        """
        names = _checked("attention", attention, config, "search space")
        return cls(
            attention=tuple(_of_layer(names, layer, config) for layer in range(config.num_layers)),
            ffn=(_checked("ffn", ffn, config, "search space"),) * config.num_layers,
        )

    @classmethod
    def from_file(cls, path: str | Path, config: ParentConfig) -> SearchSpace:
        """Read a search-space YAML: defaults for all layers, exceptions by layer range, runs.

        A layer of a parent that attends in a window takes those variants that bound it no less.
        With ``precisions`` every layer may take each of its variants in each of these weight types
        too, beside the serving precision's.

        Raises:
            InputError: unknown keys, variants that do not fit, widths that no serving engine
                loads, or layers out of range.
        """
        data = read_yaml(path, format=FORMAT)
        required, optional = {"format", "attention", "ffn"}, {"exceptions", "precisions", "runs"}
        check_keys(data, path, required=required, optional=optional)
        layers = config.num_layers
        attention = [_checked("attention", data["attention"], config, str(path))] * layers
        ffn = [_checked("ffn", data["ffn"], config, str(path))] * layers
        exceptions = data.get("exceptions", [])
        if not isinstance(exceptions, list):
            raise InputError(f"{path}: exceptions is not a list", remedy="write a list, or none")
        for number, exception in enumerate(exceptions, start=1):
            where = f"{path}, exception {number}"
            check_keys(exception, where, required={"layers"}, optional={"attention", "ffn"})
            for layer in _layer_range(exception["layers"], layers, where):
                if "attention" in exception:
                    chosen = exception["attention"]
                    attention[layer] = _checked("attention", chosen, config, where)
                if "ffn" in exception:
                    ffn[layer] = _checked("ffn", exception["ffn"], config, where)
        chosen_of = (_of_layer(names, n, config) for n, names in enumerate(attention))
        types = _checked_types(data.get("precisions", []), str(path))
        space = cls(
            attention=tuple(_in_types("attention", names, types) for names in chosen_of),
            ffn=tuple(_in_types("ffn", names, types) for names in ffn),
        )
        _check_widths(space, config, str(path))
        runs = data.get("runs", [])
        if not isinstance(runs, list):
            raise InputError(f"{path}: runs is not a list", remedy="write a list, or none")
        found = [
            run
            for number, entry in enumerate(runs, start=1)
            for run in _runs(entry, space, f"{path}, run {number}")
        ]
        return replace(space, runs=tuple(dict.fromkeys(found)))


def _check_widths(space: SearchSpace, config: ParentConfig, where: str) -> None:
    """Refuse widths of which stock engines load no child; the parent's own may be any."""
    for name in space.all_variants("ffn"):
        variant = parse_variant("ffn", name)
        if not isinstance(variant, Mlp) or shape_of(name) == config.ffn:
            continue
        width = variant.intermediate_size
        if below := width % STOCK_WIDTH_MULTIPLE:
            near = [n for n in (width - below, width - below + STOCK_WIDTH_MULTIPLE) if n]
            raise InputError(
                f"{where}, ffn: {name}: engines load widths that are multiples of "
                f"{STOCK_WIDTH_MULTIPLE}, {width} is not",
                remedy=f"use {' or '.join(f'mlp_{n}' for n in near)}",
            )


def _checked_types(types: object, where: str) -> list[str]:
    known = isinstance(types, list) and all(str(name) in WEIGHT_BYTES for name in types)
    if not isinstance(types, list) or not known or len(set(types)) != len(types):
        raise InputError(
            f"{where}: precisions {types!r} is not a list of weight types, each once",
            remedy=f"write some of {', '.join(WEIGHT_BYTES)}, or leave it out",
        )
    return types


def _in_types(subblock: Subblock, names: Iterable[str], types: list[str]) -> tuple[str, ...]:
    """The variants, and each in every type that it can have and does not name already."""
    found = dict.fromkeys(names)
    for name in names:
        variant = parse_variant(subblock, name)
        if variant.weights is None and not isinstance(variant, NoOp):
            found |= dict.fromkeys(str(with_weights(variant, one)) for one in types)
    return tuple(found)


def _runs(entry: object, space: SearchSpace, where: str) -> Iterator[Replacement]:
    """Every window of the lengths given, with every pair of the variants given."""
    check_keys(entry, where, required={"lengths", "attention", "ffn"}, optional={"layers"})
    assert isinstance(entry, dict)
    lengths = entry["lengths"]
    if not isinstance(lengths, list) or any(type(n) is not int or n < 2 for n in lengths):
        raise InputError(
            f"{where}: lengths {lengths!r} is not a list of whole numbers of at least 2",
            remedy="write [2], or [2, 3]",
        )
    last = space.num_layers - 1
    layers = _layer_range(entry.get("layers", f"0-{last}"), space.num_layers, where)
    for length in lengths:
        for first in layers:
            if first + length - 1 > layers[-1]:
                break
            for attention in _offered("attention", entry["attention"], space, first, where):
                for ffn in _offered("ffn", entry["ffn"], space, first, where):
                    yield first, first + length - 1, attention, ffn


def _offered(
    subblock: Subblock, names: object, space: SearchSpace, layer: int, where: str
) -> list[str]:
    offered = space.variants(subblock)[layer]
    if not isinstance(names, list) or not all(name in offered for name in names):
        raise InputError(
            f"{where}: {subblock} {names!r} is not a list of variants that layer {layer} may take",
            remedy=f"use some of {', '.join(offered)}",
        )
    return names


def _checked(
    subblock: Subblock, names: object, config: ParentConfig, where: str
) -> tuple[str, ...]:
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise InputError(f"{where}: {subblock} is not a list of variants", remedy="write a list")
    if len(set(names)) != len(names):
        raise InputError(f"{where}: a variant of {subblock} is listed twice", remedy="drop one")
    for name in names:
        try:
            check_variant(parse_variant(subblock, name), config)
        except InputError as error:
            raise InputError(
                f"{where}, {subblock}: {error.message}", remedy=error.remedy
            ) from error
    if subblock == "attention":
        return tuple(names)
    return tuple(names) if config.ffn in names else (config.ffn, *names)


def _of_layer(names: tuple[str, ...], layer: int, config: ParentConfig) -> tuple[str, ...]:
    """The attention variants that a layer takes: its own, and those with no longer a window."""
    own = config.own("attention", layer)
    window = config.layer_windows[layer] if config.layer_windows else None
    taken = tuple(n for n in names if _no_longer(parse_variant("attention", n), window))
    return taken if own in taken else (own, *taken)


def _no_longer(variant: Variant, window: int | None) -> bool:
    if window is None or not isinstance(variant, Gqa):
        return True
    return variant.own_window is not None and variant.own_window <= window


def _layer_range(text: object, num_layers: int, where: str) -> range:
    match = re.fullmatch(r"([0-9]{1,9})(?:-([0-9]{1,9}))?", str(text))
    if match is not None:
        layers = range(int(match[1]), int(match[2] or match[1]) + 1)
        if layers and layers[-1] < num_layers:
            return layers
    raise InputError(
        f"{where}: layers {text!r} is not a range within 0-{num_layers - 1}",
        remedy="write one layer (7) or a range (0-3)",
    )
