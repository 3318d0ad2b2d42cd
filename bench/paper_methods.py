"""Ways to choose a child at a given throughput that the solver's is held against."""

from __future__ import annotations

import numpy as np

from puzzle_search.arch import ArchitectureSpec, ParentConfig, parse_variant, subblock_parameters
from puzzle_search.solve import Problem, ScoreTable, solve


def most_parameters(problem: Problem, config: ParentConfig) -> ArchitectureSpec:
    """The most parameters, whatever the scores (the paper's max-params)."""
    items = problem.items
    attention, ffn = (
        np.array([subblock_parameters(parse_variant(part, name), config) for name in names])
        for part, names in (("attention", problem.attention), ("ffn", problem.ffn))
    )
    parameters = attention[items.attention] + ffn[items.ffn]
    return solve(problem.with_damage(-parameters.astype(np.float64))).spec


def fewest_layers_dropped(
    problem: Problem, scores: ScoreTable, config: ParentConfig
) -> ArchitectureSpec:
    """Drop whole layers, the least damaging first, until the throughput is reached."""
    own, dropped = (config.attention, config.ffn), ("no_op", "no_op")
    damage = [
        scores.block_damage(layer, *dropped, config, {"kl": 1.0})
        for layer in range(config.num_layers)
    ]
    pairs = [own] * config.num_layers
    for layer in np.argsort(damage):
        pairs[layer] = dropped
        spec = ArchitectureSpec.of(config.name, pairs)
        if problem.operating_points(problem.selection(spec)) is not None:
            return spec
    raise AssertionError("the throughput is beyond a parent without layers")
