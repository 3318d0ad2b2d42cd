"""Reconstruct a score table for gpt-oss-120b from the one child that is published.

    python examples/gpt-oss-120b/make_scores.py

Of gpt-oss-puzzle-88B is known how many layers have which attention and how many experts, and that
early layers keep more experts than later ones (arXiv 2602.11937 and its model card); not the
scores behind it. Here damage of dropped experts goes by their number (`SHAPES`) and falls
with depth (`SPREAD`), that of a window is alike in all layers, and one factor between the two is
the one at which the best child that is as fast as the published one on a single H100, where both
experts and windows bind, comes nearest to its counts. The scale means nothing: the child's damage
is set to `SCALE`. No text was scored.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from puzzle_search import __version__
from puzzle_search.arch import ArchitectureSpec, ParentConfig, SearchSpace
from puzzle_search.cost import Scenario
from puzzle_search.files import value_hash
from puzzle_search.solve import Limits, ScoreRow, ScoreTable, Workload, formulate, solve
from puzzle_search.solve.problem.score_table import FORMAT
from puzzle_search.solve.question.device import find_target
from puzzle_search.solve.question.targets import cost_table

HERE = Path(__file__).parent
CHILD = HERE / "children" / "gpt-oss-puzzle-88b.yaml"
SCENARIO = Scenario(input_len=65536, output_len=65536)
# Shaped so that what the published child uses can be best, and what it avoids hardly ever.
SHAPES = {
    "attention": {"gqa_8_window_8192": 1.0, "gqa_8_window_128": 4.0},
    "ffn": {"moe_96": 0.6, "moe_64": 1.0, "moe_32": 2.5},
}
# From the first layer to the last, damage falls by a factor e to this power.
SPREAD = 2.0
ATTENTION_FACTORS = np.geomspace(0.1, 10.0, 41)
SCALE = 0.1


def rows_of(config: ParentConfig, attention: float, scale: float = 1.0) -> Iterator[ScoreRow]:
    """Rows of every replacement, by layer; as uncertain as they are large."""
    for layer in range(config.num_layers):
        depth = layer / (config.num_layers - 1)
        factors = {"attention": attention, "ffn": float(np.exp(SPREAD * (0.5 - depth)))}
        for subblock, shapes in SHAPES.items():
            if subblock == "attention" and config.own("attention", layer) != config.attention:
                continue
            for variant, shape in shapes.items():
                value = float(f"{factors[subblock] * shape * scale:.4e}")
                names = {"attention": "", "ffn": ""} | {subblock: variant}
                yield ScoreRow(
                    first_layer=layer, last_layer=layer, metric="kl", value=value,
                    stderr=value, tokens=0, **names,
                )  # fmt: skip


def counts_of(spec: ArchitectureSpec) -> Counter[str]:
    """How often each variant stands in a spec."""
    return Counter(name for block in spec.blocks for name in (block.attention, block.ffn))


def main() -> None:
    """Write scores.csv and scores.yaml beside this script, and print what the answer has."""
    config = ParentConfig.from_file(HERE / "config.json", name="gpt-oss-120b")
    space = SearchSpace.from_file(HERE / "space.yaml", config)
    cost = cost_table(config, space, find_target("h100", config), SCENARIO)
    child = ArchitectureSpec.from_file(CHILD)
    published = cost.best_cost(child)
    assert published is not None
    asked = Limits(tokens_per_second_per_gpu=published.tokens_per_second_per_gpu)

    def counts(factor: float) -> Counter[str]:
        scores = ScoreTable(list(rows_of(config, factor)), {"evidence": "reconstructed"})
        problem = formulate(config, space, scores, [Workload.on_device(cost, asked)])
        return counts_of(solve(problem).spec)

    def miss(factor: float) -> int:
        found, wanted = counts(factor), counts_of(child)
        return sum(abs(found[name] - wanted[name]) for name in {*found, *wanted})

    attention = float(min(ATTENTION_FACTORS, key=miss))
    rows = {(r.first_layer, r.attention or r.ffn): r.value for r in rows_of(config, attention)}
    total = sum(
        rows.get((layer, name), 0.0)
        for layer, block in enumerate(child.blocks)
        for name in (block.attention, block.ffn)
    )
    sidecar = {
        "format": FORMAT,
        "package_version": __version__,
        "parent": config.name,
        "parent_config": value_hash(dict(config.raw)),
        "evidence": "reconstructed",
        "data": "published counts of the layers of gpt-oss-puzzle-88B (arXiv 2602.11937); no text "
        "was scored",
        "made_by": "examples/gpt-oss-120b/make_scores.py",
        "notes": f"attention {attention:.3g} x FFN; the scale is arbitrary: the published child "
        f"has {SCALE}",
    }
    ScoreTable(list(rows_of(config, attention, SCALE / total)), sidecar).write(HERE / "scores.csv")
    print(dict(counts(attention)), "misses", miss(attention))


if __name__ == "__main__":
    main()
