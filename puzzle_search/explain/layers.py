"""What a spec did to its parent: block by block, and in the scenarios that it shall serve."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from puzzle_search.arch import (
    ArchitectureSpec,
    BlockChoice,
    Subblock,
    Variant,
    architecture_parameters,
    parse_variant,
    subblock_parameters,
)
from puzzle_search.arch.change import SubblockChange, parent_size
from puzzle_search.cost import CostTable, Scenario, ScenarioCost
from puzzle_search.cost.table import SubblockCosts
from puzzle_search.errors import InputError
from puzzle_search.solve.question.setting import Setting


@dataclass(frozen=True, kw_only=True)
class BlockExplanation:
    """One block against the parent's block, or blocks, that it stands for.

    Attributes:
        damage: from the score table; None where it does not say.
        saved_us: time of a batch, prefill and all decode steps; None where times are not known.
        saved_bytes: weights and KV cache of a batch, on one device.
        saved_parameters: weights.
    """

    layers: tuple[int, ...]
    attention: SubblockChange
    ffn: SubblockChange
    damage: float | None
    saved_us: float | None
    saved_bytes: int
    saved_parameters: int

    @property
    def unchanged(self) -> bool:
        """Whether it is the parent's own block."""
        return len(self.layers) == 1 and self.attention.change == self.ffn.change == "kept"

    def as_dict(self) -> dict[str, Any]:
        """The block as ``explain --json`` prints it."""
        return {
            "layers": list(self.layers),
            "attention": vars(self.attention),
            "ffn": vars(self.ffn),
            "damage": self.damage,
            "saved_us": self.saved_us,
            "saved_bytes": self.saved_bytes,
            "saved_parameters": self.saved_parameters,
        }


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """A spec against its parent.

    Attributes:
        setting: what they are held against.
        blocks: in order; savings are those in the first scenario, at the child's operating point.
        child: cost by scenario, where it was solved for or at its best.
        parent: cost by scenario at its own best batch size; None where it does not fit.
    """

    spec: ArchitectureSpec
    setting: Setting
    blocks: tuple[BlockExplanation, ...]
    child: tuple[ScenarioCost, ...]
    parent: tuple[ScenarioCost | None, ...]

    @property
    def parameters(self) -> tuple[int, int]:
        """Of parent and child."""
        config = self.setting.config
        identity = ArchitectureSpec.identity(config)
        return (
            architecture_parameters(identity, config),
            architecture_parameters(self.spec, config),
        )

    @property
    def kv_bytes_per_token(self) -> tuple[int, int]:
        """Of parent and child."""
        identity = ArchitectureSpec.identity(self.setting.config)
        of = self.setting.kv_bytes_per_token
        return of(identity), of(self.spec)

    @property
    def throughput_when_solved(self) -> tuple[float | None, ...]:
        """Output tokens/s per GPU that the spec records, by scenario; None where it has none.

        It differs from the child's of today where the costs have changed since, or where a run
        solved with a scalar measured on its own machine.
        """
        if not self.setting.recorded:
            return (None,) * len(self.child)
        recorded = {
            Scenario(input_len=entry["input_len"], output_len=entry["output_len"]): entry.get(
                "tokens_per_second_per_gpu"
            )
            for entry in self.spec.solution["scenarios"]
        }
        values = [recorded.get(cost.scenario) for cost in self.child]
        return tuple(value if isinstance(value, float) else None for value in values)

    def as_dict(self) -> dict[str, Any]:
        """The explanation as ``explain --json`` prints it."""
        return {
            "parent": self.setting.config.name,
            "parameters": dict(zip(("parent", "child"), self.parameters, strict=True)),
            "kv_bytes_per_token": dict(
                zip(("parent", "child"), self.kv_bytes_per_token, strict=True)
            ),
            "score": self.setting.score(self.spec),
            "evidence": self.setting.evidence,
            "blocks": [block.as_dict() for block in self.blocks],
            "scenarios": [
                {
                    "child": child.as_dict(),
                    "parent": parent.as_dict() if parent else None,
                    "child_tokens_per_second_per_gpu_when_solved": solved,
                }
                for child, parent, solved in zip(
                    self.child, self.parent, self.throughput_when_solved, strict=True
                )
            ],
        }


def explain(spec: ArchitectureSpec, setting: Setting) -> Explanation:
    """Hold a spec against its parent.

    Raises:
        InputError: the spec does not fit the parent, the target lacks a variant, or the child fits
            it at no batch size.
    """
    setting.check_fits(spec)
    identity = ArchitectureSpec.identity(setting.config)
    child: list[ScenarioCost] = []
    parent: list[ScenarioCost | None] = []
    blocks: tuple[BlockExplanation, ...] = ()
    for scenario in setting.scenarios:
        table = setting.cost_table(scenario, [spec])
        solved = setting.recorded.get(scenario)
        cost = table.cost(spec, table.points.index(solved)) if solved else table.best_cost(spec)
        if cost is None:
            raise InputError(
                f"the child fits {setting.target.gpu} at no batch size in {scenario}",
                remedy="give more devices with --tp, or a smaller --dtype",
            )
        child.append(cost)
        parent.append(table.best_cost(identity))
        if not blocks:
            index = table.points.index(cost.point)
            blocks = tuple(_block(block, setting, table, index) for block in spec.blocks)
    return Explanation(
        spec=spec, setting=setting, blocks=blocks, child=tuple(child), parent=tuple(parent)
    )


def _block(block: BlockChoice, setting: Setting, table: CostTable, index: int) -> BlockExplanation:
    config = setting.config
    saved_us, saved_bytes, saved_parameters = 0.0, 0.0, 0
    parts: tuple[tuple[SubblockCosts, Subblock, Variant], ...] = (
        (table.attention, "attention", block.attention_variant),
        (table.ffn, "ffn", block.ffn_variant),
    )
    for costs, subblock, chosen in parts:
        own = [config.own(subblock, layer) for layer in block.layers]
        *before, after = costs.columns([*own, str(chosen)])
        time_us, memory = costs.total_us[index], costs.memory_bytes[index]
        saved_us += time_us[before].sum() - time_us[after]
        saved_bytes += memory[before].sum() - memory[after]
        variants = [parse_variant(subblock, name) for name in own]
        saved_parameters += sum(subblock_parameters(one, config) for one in variants)
        saved_parameters -= subblock_parameters(chosen, config)
    return BlockExplanation(
        layers=block.layers,
        attention=SubblockChange.of(
            block.attention_variant,
            parent_size("attention", config),
            config.own("attention", block.layers[0]),
        ),
        ffn=SubblockChange.of(block.ffn_variant, parent_size("ffn", config)),
        damage=setting.damage(block),
        saved_us=float(saved_us),
        saved_bytes=round(saved_bytes),
        saved_parameters=saved_parameters,
    )
