"""What a spec did to its parent by measured block costs, with no cost model in between."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from puzzle_search.arch import ArchitectureSpec, parse_variant
from puzzle_search.arch.change import SubblockChange, size_of
from puzzle_search.cost.block_costs import BlockCost, BlockCosts
from puzzle_search.errors import InputError
from puzzle_search.explain.layers import BlockExplanation
from puzzle_search.solve.problem.score_table import ScoreTable


@dataclass(frozen=True, kw_only=True)
class Usage:
    """What an architecture takes, blocks and the part outside them together.

    Attributes:
        runtime_us: None where the block costs have no runtimes.
    """

    memory_bytes: int
    runtime_us: float | None
    parameters: int


@dataclass(frozen=True, kw_only=True)
class ProblemExplanation:
    """A spec against its parent, by block costs.

    Attributes:
        parent: what the parent takes.
        child: what the child takes.
        score: summed damage; None where that of a block is not known.
    """

    spec: ArchitectureSpec
    costs: BlockCosts
    scores: ScoreTable
    blocks: tuple[BlockExplanation, ...]
    parent: Usage
    child: Usage
    score: float | None

    def as_dict(self) -> dict[str, Any]:
        """The explanation as ``explain --problem --json`` prints it."""
        return {
            "parent": self.spec.parent,
            "usage": {"parent": vars(self.parent), "child": vars(self.child)},
            "score": self.score,
            "evidence": {"scores": self.scores.evidence, "cost": self.costs.evidence},
            "blocks": [block.as_dict() for block in self.blocks],
        }


def explain_problem(
    spec: ArchitectureSpec, folder: str | Path, *, metric: str = "kl"
) -> ProblemExplanation:
    """Hold a spec against its parent, by tables such as ``puzzle-search import`` writes.

    Args:
        spec: solved on these tables, or any that they hold the blocks of.
        folder: holds ``block_costs.csv`` and ``scores.csv``.
        metric: of the score table.

    Raises:
        InputError: a table is missing or wrong, lacks a block of the spec, or has no one block
            that is the parent's own in all layers.
    """
    file = Path(folder) / "block_costs.csv"
    costs = BlockCosts.from_file(file)
    scores = ScoreTable.from_file(Path(folder) / "scores.csv")
    if spec.num_layers != costs.num_layers:
        raise InputError(
            f"the spec covers {spec.num_layers} layers, {file} has {costs.num_layers}",
            remedy="name the folder that the spec was solved on",
        )
    own = costs.parent
    sizes = (
        (0, 0)
        if own is None
        else (size_of(parse_variant("attention", own[0])), size_of(parse_variant("ffn", own[1])))
    )
    if own is None or 0 in sizes:
        raise InputError(
            f"{file} names no attention and FFN that are the parent's own in all layers",
            remedy="explain needs a parent whose layers are alike; give it in block_costs.yaml",
        )
    rows = {(row.first_layer, row.last_layer, row.attention, row.ffn): row for row in costs.rows}
    damages = {
        (row.first_layer, row.last_layer, row.attention, row.ffn): row.value
        for row in scores.rows
        if row.metric == metric
    }
    blocks, before, after = [], [], []
    for block in spec.blocks:
        key = (block.layers[0], block.layers[-1], block.attention, block.ffn)
        if key not in rows:
            raise InputError(
                f"{file} has no row for layers {key[0]}-{key[1]}, {key[2]} and {key[3]}",
                remedy="name the folder that the spec was solved on",
            )
        parents = [rows[layer, layer, *own] for layer in block.layers]
        saved = _difference(parents, rows[key])
        blocks.append(
            BlockExplanation(
                layers=block.layers,
                attention=SubblockChange.of(block.attention_variant, sizes[0]),
                ffn=SubblockChange.of(block.ffn_variant, sizes[1]),
                damage=damages.get(key),
                saved_us=saved.runtime_us,
                saved_bytes=saved.memory_bytes,
                saved_parameters=saved.parameters,
            )
        )
        before += parents
        after.append(rows[key])
    known = [block.damage for block in blocks if block.damage is not None]
    return ProblemExplanation(
        spec=spec,
        costs=costs,
        scores=scores,
        blocks=tuple(blocks),
        parent=_usage(before, costs),
        child=_usage(after, costs),
        score=sum(known) if len(known) == len(blocks) else None,
    )


def _usage(rows: list[BlockCost], costs: BlockCosts) -> Usage:
    times_us = [row.runtime_us for row in rows if row.runtime_us is not None]
    return Usage(
        memory_bytes=sum(row.memory_bytes for row in rows) + costs.outside.memory_bytes,
        runtime_us=sum(times_us) + costs.outside.runtime_us if costs.has_runtime else None,
        parameters=sum(row.parameters for row in rows) + costs.outside.parameters,
    )


def _difference(parents: list[BlockCost], child: BlockCost) -> Usage:
    times_us = [row.runtime_us for row in parents if row.runtime_us is not None]
    return Usage(
        memory_bytes=sum(row.memory_bytes for row in parents) - child.memory_bytes,
        runtime_us=None if child.runtime_us is None else sum(times_us) - child.runtime_us,
        parameters=sum(row.parameters for row in parents) - child.parameters,
    )
