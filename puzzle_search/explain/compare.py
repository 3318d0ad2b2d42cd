"""Two specs of one parent side by side."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from puzzle_search.arch import (
    ArchitectureSpec,
    BlockChoice,
    Subblock,
    architecture_parameters,
    parse_variant,
    subblock_parameters,
)
from puzzle_search.arch.change import SubblockChange, parent_size
from puzzle_search.cost import Scenario, ScenarioCost
from puzzle_search.errors import InputError
from puzzle_search.solve.question.setting import Setting

_SUBBLOCKS: tuple[Subblock, Subblock] = ("attention", "ffn")
_Costs = tuple[ScenarioCost | None, ScenarioCost | None]


@dataclass(frozen=True, kw_only=True)
class LayerDifference:
    """A layer whose blocks differ: those of the first and of the second spec."""

    layer: int
    first: BlockChoice
    second: BlockChoice


@dataclass(frozen=True, kw_only=True)
class SpecComparison:
    """Two specs side by side.

    Attributes:
        setting: what they are held against.
        specs: the first and the second.
        layers: layers of their parent.
        agreement: in how many layers the subblock is the same.
        differences: the layers that differ, in order.
        costs: by scenario, each at its own best operating point; None where it fits nowhere.
    """

    setting: Setting
    specs: tuple[ArchitectureSpec, ArchitectureSpec]
    layers: int
    agreement: dict[Subblock, int]
    differences: tuple[LayerDifference, ...]
    costs: dict[Scenario, _Costs]

    def counts(self, subblock: Subblock) -> dict[str, tuple[int, int]]:
        """How many blocks of each spec have a variant, the largest variant first."""
        first, second = (
            Counter(getattr(block, subblock) for block in spec.blocks) for spec in self.specs
        )
        names = sorted(
            first | second,
            key=lambda name: (
                -subblock_parameters(parse_variant(subblock, name), self.setting.config)
            ),
        )
        return {name: (first[name], second[name]) for name in names}

    def changes(self, subblock: Subblock, which: int) -> list[SubblockChange]:
        """What became of a subblock in each layer of the first (0) or second (1) spec."""
        config = self.setting.config
        size = parent_size(subblock, config)
        return [
            SubblockChange.of(parse_variant(subblock, getattr(block, subblock)), size)
            for block in _by_layer(self.specs[which])
        ]

    @property
    def parameters(self) -> tuple[int, int]:
        """Of the first and the second."""
        first, second = (architecture_parameters(s, self.setting.config) for s in self.specs)
        return first, second

    @property
    def kv_bytes_per_token(self) -> tuple[int, int]:
        """Of the first and the second."""
        first, second = (self.setting.kv_bytes_per_token(spec) for spec in self.specs)
        return first, second

    @property
    def scores(self) -> tuple[float | None, float | None]:
        """Summed damage; None where that of a block is not known."""
        first, second = (self.setting.score(spec) for spec in self.specs)
        return first, second

    def as_dict(self) -> dict[str, Any]:
        """The comparison as ``compare --json`` prints it."""
        return {
            "parent": self.setting.config.name,
            "layers": self.layers,
            "agreement": self.agreement,
            "counts": {subblock: self.counts(subblock) for subblock in _SUBBLOCKS},
            "parameters": self.parameters,
            "kv_bytes_per_token": self.kv_bytes_per_token,
            "scores": self.scores,
            "scenarios": [
                [cost.as_dict() if cost else None for cost in pair] for pair in self.costs.values()
            ],
            "differences": [
                {"layer": d.layer, "blocks": [d.first.as_dict(), d.second.as_dict()]}
                for d in self.differences
            ],
            "evidence": self.setting.evidence,
        }


def compare(
    first: ArchitectureSpec, second: ArchitectureSpec, setting: Setting, *, any_parent: bool = False
) -> SpecComparison:
    """Hold two specs against each other.

    Args:
        first: a spec.
        second: another.
        setting: what both are held against.
        any_parent: take both as children of the setting's parent, whatever they call theirs.

    Raises:
        InputError: they have different parents, cover different layers, or do not fit the parent.
    """
    if first.num_layers != second.num_layers:
        raise InputError(
            f"the first spec covers {first.num_layers} layers, the second {second.num_layers}",
            remedy="compare specs of one parent",
        )
    if first.parent != second.parent and not any_parent:
        raise InputError(
            f"the parent of the first spec is {first.parent!r}, of the second {second.parent!r}",
            remedy="give --model to take both as children of that parent",
        )
    for spec in (first, second):
        setting.check_fits(spec)
    layers = [
        LayerDifference(layer=layer, first=a, second=b)
        for layer, (a, b) in enumerate(zip(_by_layer(first), _by_layer(second), strict=True))
    ]
    costs: dict[Scenario, _Costs] = {}
    for scenario in setting.scenarios:
        table = setting.cost_table(scenario, [first, second])
        costs[scenario] = (table.best_cost(first), table.best_cost(second))
    return SpecComparison(
        setting=setting,
        specs=(first, second),
        layers=len(layers),
        agreement={
            subblock: sum(
                getattr(pair.first, subblock) == getattr(pair.second, subblock)
                and pair.first.layers == pair.second.layers
                for pair in layers
            )
            for subblock in _SUBBLOCKS
        },
        differences=tuple(pair for pair in layers if pair.first != pair.second),
        costs=costs,
    )


def _by_layer(spec: ArchitectureSpec) -> list[BlockChoice]:
    """The block that stands for each parent layer."""
    return [block for block in spec.blocks for _ in block.layers]
