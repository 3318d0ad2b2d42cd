"""Ways to choose a child at a given throughput that the solver's is held against."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from baselines import greedy, random_specs, uniform
from paper_lab import Lab
from paper_pairing import Choose

from puzzle_search.arch import (
    ArchitectureSpec,
    ParentConfig,
    SearchSpace,
    parse_variant,
    subblock_parameters,
)
from puzzle_search.solve import Problem, ScoreTable, solve

_RANDOM = 20


def ways_to_choose(
    lab: Lab, library: Path, scores: ScoreTable, problem: Callable[..., Problem]
) -> dict[str, Choose]:
    """The solver and what it is held against, each a choice for a predicted speed-up.

    Args:
        lab: of the parent.
        library: that children are built from.
        scores: of that library.
        problem: what the solver is asked for a speed-up, over the lab's space or the one given.
    """
    config = lab.config
    no_ops = SearchSpace.uniform(
        config, attention=[config.attention, "no_op"], ffn=[config.ffn, "no_op"]
    )
    return {
        "MIP": lambda target: solve(problem(target)).spec,
        "greedy": lambda target: greedy(problem(target)),
        "max-params": lambda target: most_parameters(problem(target), config),
        "no-op only": lambda target: solve(problem(target, space=no_ops)).spec,
        f"random (median of {_RANDOM})": lambda target: _median_random(
            lab, library, problem(target), target
        ),
        "uniform": lambda target: uniform(problem(target)),
        "layers dropped": lambda target: fewest_layers_dropped(problem(target), scores, config),
    }


def _median_random(
    lab: Lab, library: Path, problem: Problem, target: float
) -> ArchitectureSpec | None:
    """The random architecture of median KL on the tokens of the scores, if any is found."""
    judge = lab.judge(library)
    specs = random_specs(problem, _RANDOM, seed=1)
    damage = [
        lab.once(f"method random {target} {number}", lambda spec=spec: judge.measure(spec))
        for number, spec in enumerate(specs)
    ]
    return specs[int(np.argsort(damage)[len(specs) // 2])] if specs else None


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
) -> ArchitectureSpec | None:
    """Drop whole layers, the least damaging first, until the throughput is reached, if it is."""
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
    return None
