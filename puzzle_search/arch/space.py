"""The search space: which variants each layer may take."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from puzzle_search.arch.config import ParentConfig
from puzzle_search.arch.variants import Subblock, check_variant, parse_variant
from puzzle_search.errors import InputError
from puzzle_search.files import check_keys, read_yaml

FORMAT = "puzzle-search.search-space/1"


@dataclass(frozen=True, kw_only=True)
class SearchSpace:
    """Allowed attention and FFN variants, one tuple a layer; the parent's own are always there."""

    attention: tuple[tuple[str, ...], ...]
    ffn: tuple[tuple[str, ...], ...]

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

    @classmethod
    def uniform(cls, config: ParentConfig, *, attention: list[str], ffn: list[str]) -> SearchSpace:
        """The same variants for every layer.

        Raises:
            InputError: a variant is unknown, listed twice, or does not fit the parent.
        """
        layers = config.num_layers
        return cls(
            attention=(_checked("attention", attention, config, "search space"),) * layers,
            ffn=(_checked("ffn", ffn, config, "search space"),) * layers,
        )

    @classmethod
    def from_file(cls, path: str | Path, config: ParentConfig) -> SearchSpace:
        """Read a search-space YAML: defaults for all layers and exceptions by layer range.

        Raises:
            InputError: unknown keys, variants that do not fit, or layers out of range.
        """
        data = read_yaml(path, format=FORMAT)
        check_keys(data, path, required={"format", "attention", "ffn"}, optional={"exceptions"})
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
        return cls(attention=tuple(attention), ffn=tuple(ffn))


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
    own = config.attention if subblock == "attention" else config.ffn
    return tuple(names) if own in names else (own, *names)


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
