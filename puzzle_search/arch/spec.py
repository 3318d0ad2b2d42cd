"""The architecture spec: one pair of variants per block, with the solution that it came from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from puzzle_search.arch.config import ParentConfig
from puzzle_search.arch.space import Replacement
from puzzle_search.arch.variants import Variant, check_variant, parse_variant
from puzzle_search.errors import InputError
from puzzle_search.files import CONTROL, check_keys, read_yaml, write_text

FORMAT = "puzzle-search.architecture/1"


@dataclass(frozen=True, kw_only=True)
class BlockChoice:
    """The variants of one block, and the parent layers that it stands for."""

    attention: str
    ffn: str
    layers: tuple[int, ...]

    @property
    def attention_variant(self) -> Variant:
        """The attention variant, parsed."""
        return parse_variant("attention", self.attention)

    @property
    def ffn_variant(self) -> Variant:
        """The FFN variant, parsed."""
        return parse_variant("ffn", self.ffn)

    @property
    def replacement(self) -> Replacement:
        """First and last layer, and both variants by name."""
        return (self.layers[0], self.layers[-1], self.attention, self.ffn)

    def as_dict(self) -> dict[str, Any]:
        """The block as it is written in a spec."""
        block: dict[str, Any] = {"attention": self.attention, "ffn": self.ffn}
        return block | {"layers": list(self.layers)} if len(self.layers) > 1 else block


@dataclass(frozen=True, kw_only=True)
class ArchitectureSpec:
    """A child: its parent's name, its blocks in order, and how the answer was found."""

    parent: str
    blocks: tuple[BlockChoice, ...]
    solution: dict[str, Any] = field(default_factory=dict, compare=False, hash=False)

    @property
    def num_layers(self) -> int:
        """Layers of the parent that the blocks cover."""
        return sum(len(block.layers) for block in self.blocks)

    @classmethod
    def of(cls, parent: str, pairs: Sequence[tuple[str, str]], **solution: Any) -> ArchitectureSpec:
        """A spec from one (attention, ffn) pair per parent layer."""
        blocks = tuple(
            BlockChoice(attention=attention, ffn=ffn, layers=(layer,))
            for layer, (attention, ffn) in enumerate(pairs)
        )
        return cls(parent=parent, blocks=blocks, solution=solution)

    @classmethod
    def identity(cls, config: ParentConfig) -> ArchitectureSpec:
        """The parent itself."""
        layers = range(config.num_layers)
        return cls.of(config.name, [(config.own("attention", n), config.ffn) for n in layers])

    @classmethod
    def from_file(cls, path: str | Path) -> ArchitectureSpec:
        """Read a spec.

        Raises:
            InputError: unknown keys or variants, or blocks that do not cover 0..n-1 in order.
        """
        data = read_yaml(path, format=FORMAT)
        check_keys(data, path, required={"format", "parent", "blocks"}, optional={"solution"})
        return cls.from_parts(data["parent"], data["blocks"], data.get("solution", {}), str(path))

    @classmethod
    def from_parts(
        cls, parent: object, blocks: object, solution: object, where: str
    ) -> ArchitectureSpec:
        """A spec from what a file says of it.

        Args:
            parent: its name.
            blocks: one mapping a block, in order.
            solution: how it was found.
            where: the file, for messages.

        Raises:
            InputError: unknown keys or variants, or blocks that do not cover 0..n-1 in order.
        """
        if not isinstance(blocks, list) or not blocks:
            raise InputError(f"{where}: blocks is not a list", remedy="write one entry per block")
        read: list[BlockChoice] = []
        covered = 0
        for number, entry in enumerate(blocks):
            here = f"{where}, block {number}"
            check_keys(entry, here, required={"attention", "ffn"}, optional={"layers"})
            layers = _layers(entry.get("layers", [covered]), here)
            if layers != tuple(range(covered, covered + len(layers))):
                raise InputError(
                    f"{here}: layers {list(layers)} do not begin at layer {covered}",
                    remedy="cover every parent layer once, in order",
                )
            block = BlockChoice(
                attention=str(entry["attention"]), ffn=str(entry["ffn"]), layers=layers
            )
            try:
                parse_variant("attention", block.attention)
                parse_variant("ffn", block.ffn)
            except InputError as error:
                raise InputError(f"{here}: {error.message}", remedy=error.remedy) from error
            read.append(block)
            covered += len(layers)
        if not isinstance(parent, str) or not parent or CONTROL.search(parent):
            raise InputError(f"{where}: parent {parent!r} is not a name", remedy="quote the name")
        if not isinstance(solution, dict):
            raise InputError(f"{where}: solution is not a mapping", remedy="write one, or none")
        return cls(parent=parent, blocks=tuple(read), solution=solution)

    def to_yaml(self) -> str:
        """The spec as YAML."""
        data: dict[str, Any] = {
            "format": FORMAT,
            "parent": self.parent,
            "blocks": [block.as_dict() for block in self.blocks],
        }
        if self.solution:
            data["solution"] = self.solution
        return yaml.dump(data, Dumper=_SpecDumper, sort_keys=False, default_flow_style=False)

    def write(self, path: str | Path) -> None:
        """Write the spec, whole or not at all."""
        write_text(path, self.to_yaml())

    def check_fits(self, config: ParentConfig) -> None:
        """Check that the spec describes children of this parent.

        Raises:
            InputError: the layers differ in number, or a variant does not fit.
        """
        if self.num_layers != config.num_layers:
            raise InputError(
                f"the spec covers {self.num_layers} layers, {config.name} has {config.num_layers}",
                remedy="use the spec with the parent that it was solved for",
            )
        for block in self.blocks:
            check_variant(block.attention_variant, config)
            check_variant(block.ffn_variant, config)


def _layers(value: object, where: str) -> tuple[int, ...]:
    # `type`, not `isinstance`: true and false are no layers.
    if not isinstance(value, list) or not value or any(type(layer) is not int for layer in value):
        raise InputError(
            f"{where}: layers {value!r} is not a list of layer numbers", remedy="write [40, 41]"
        )
    return tuple(value)


class _SpecDumper(yaml.SafeDumper):
    """Blocks on one line each, so that a spec reads as a table."""

    def represent_block(self, data: dict[str, Any]) -> yaml.Node:
        return self.represent_mapping(
            "tag:yaml.org,2002:map", data.items(), flow_style={"attention", "ffn"} <= data.keys()
        )


_SpecDumper.add_representer(dict, _SpecDumper.represent_block)
