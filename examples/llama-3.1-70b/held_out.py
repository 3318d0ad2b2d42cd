"""How well children are predicted that took no part, by the curve and by depth alone.

A child's own budget is taken as given: the layers of least predicted damage get its most drastic
choices, as many of each as it has. So nothing but the order of the layers is judged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from layer_curve import SUBBLOCKS, Child, Floats, best_length, left_out, posterior
from scipy.stats import spearmanr

from puzzle_search.arch import Subblock

LOWEST_POINTS = np.arange(0.3, 1.001, 0.05)


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Of a predicted order of the layers with a child's choices in one subblock.

    Attributes:
        same: layers with the child's very choice.
        kept: layers rightly told to be kept whole or not.
        rank: Spearman's correlation of predicted damage and what is kept.
    """

    same: int
    kept: int
    rank: float

    @classmethod
    def of(cls, damage: Floats, child: Child, subblock: Subblock) -> Agreement:
        """Give the child's choices to the layers by their damage, and compare."""
        kept = child.kept[subblock]
        whole = (kept == kept.max()).astype(float)
        rank = float(spearmanr(damage, kept).statistic)
        return cls(same=_matched(damage, kept), kept=_matched(damage, whole), rank=rank)

    def __str__(self) -> str:
        return f"{self.same}, {self.kept}; {self.rank:.2f}"


def _matched(damage: Floats, kept: Floats) -> int:
    given = np.empty_like(kept)
    given[np.argsort(damage, kind="stable")] = np.sort(kept)
    return int((given == kept).sum())


def by_curve(child: Child, others: Sequence[Child]) -> dict[Subblock, Agreement]:
    """The curve fitted to the others, its length chosen among them too."""
    length = best_length(others)
    return {
        subblock: Agreement.of(posterior(others, subblock, child, length).mean, child, subblock)
        for subblock in SUBBLOCKS
    }


def by_deeper(child: Child) -> dict[Subblock, Agreement]:
    """Depth alone: the deeper, the less a layer matters."""
    return {s: Agreement.of(-child.depths, child, s) for s in SUBBLOCKS}


def by_valley(child: Child, others: Sequence[Child]) -> dict[Subblock, Agreement]:
    """Depth alone: a V whose lowest point has the most of the others' choices right."""

    def right(point: float, subblock: Subblock) -> float:
        return sum(
            _matched(np.abs(other.depths - point), other.kept[subblock]) / len(other.depths)
            for other in others
        )

    found: dict[Subblock, Agreement] = {}
    for subblock in SUBBLOCKS:
        lowest = max(LOWEST_POINTS, key=lambda point, s=subblock: right(point, s))
        found[subblock] = Agreement.of(np.abs(child.depths - lowest), child, subblock)
    return found


def compare(children: Sequence[Child]) -> dict[tuple[str, Subblock], tuple[Agreement, ...]]:
    """Every child left out in turn: by the curve, by a V in depth, by depth."""
    found: dict[tuple[str, Subblock], tuple[Agreement, ...]] = {}
    for child, others in left_out(children):
        ways = by_curve(child, others), by_valley(child, others), by_deeper(child)
        for subblock in SUBBLOCKS:
            found[child.name, subblock] = tuple(way[subblock] for way in ways)
    return found


def together(agreements: Sequence[Agreement]) -> Agreement:
    """Layers summed, correlations averaged."""
    return Agreement(
        same=sum(one.same for one in agreements),
        kept=sum(one.kept for one in agreements),
        rank=float(np.mean([one.rank for one in agreements])),
    )


def table(children: Sequence[Child]) -> str:
    """The comparison in Markdown."""
    found = compare(children)
    layers = {child.name: len(child.depths) for child in children}
    rows = [(name, subblock, layers[name], *ways) for (name, subblock), ways in found.items()]
    for subblock in SUBBLOCKS:
        of_all = zip(*(ways for (_, s), ways in found.items() if s == subblock), strict=True)
        rows.append(("all", subblock, sum(layers.values()), *map(together, of_all)))
    head = ("left out", "subblock", "layers", "this table", "V in depth", "deeper matters less")
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)
