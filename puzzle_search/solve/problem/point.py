"""The problem at one operating point: choose one item for every layer within linear limits."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from puzzle_search.solve.problem.items import Floats, Items, Selection


@dataclass(frozen=True, kw_only=True)
class Trait:
    """A property that items share and that uses the same in each, such as their attention variant.

    Attributes:
        of: (items,), which value each item has.
        usage: (limits, values), what it uses, in units of the limit.
    """

    of: NDArray[np.intp]
    usage: Floats


@dataclass(frozen=True, kw_only=True)
class PointProblem:
    """A knapsack of several limits and exactly-once cover.

    Attributes:
        items: what to choose from.
        objective: (items,), to be minimised.
        objective_by_layer: whether the layer matters to it, not the variants alone.
        offset: objective of what no choice changes.
        attention_usage: (limits, attention variants), in units of the limits.
        ffn_usage: (limits, FFN variants), likewise.
        own_usage: what items use beyond their variants, if anything.
        limits: (limits,), in units of themselves: 1 up to rounding where use is never negative.
    """

    items: Items
    objective: Floats
    objective_by_layer: bool
    offset: float
    attention_usage: Floats
    ffn_usage: Floats
    own_usage: Trait | None
    limits: Floats

    @property
    def traits(self) -> tuple[Trait, ...]:
        """What the items use is the sum of what these use."""
        attention = Trait(of=self.items.attention, usage=self.attention_usage)
        ffn = Trait(of=self.items.ffn, usage=self.ffn_usage)
        return (attention, ffn) if self.own_usage is None else (attention, ffn, self.own_usage)

    @cached_property
    def usage(self) -> Floats:
        """What each item uses, (limits, items)."""
        total = np.zeros((len(self.limits), len(self.items)))
        for trait in self.traits:
            total += trait.usage[:, trait.of]
        return total

    def value(self, selection: Selection) -> float:
        """Objective of a selection."""
        return float(self.objective[selection].sum()) + self.offset

    def used(self, selection: Selection) -> Floats:
        """What a selection uses of each limit."""
        total: Floats = self.usage[:, selection].sum(axis=1)
        return total

    def tightened(self, margin: float) -> PointProblem:
        """The same problem with less of each limit, in its own units."""
        return replace(self, limits=self.limits - margin) if margin else self

    def without(self, selection: Selection) -> PointProblem:
        """The same problem with one selection forbidden."""
        taken = np.zeros(len(self.items))
        taken[selection] = 1 / len(selection)
        own = self.own_usage
        before = np.zeros((len(self.limits), len(self.items)))
        if own is not None:
            before = own.usage[:, own.of]
        values, of = np.unique(np.vstack([before, taken]), axis=1, return_inverse=True)
        return replace(
            self,
            attention_usage=np.pad(self.attention_usage, ((0, 1), (0, 0))),
            ffn_usage=np.pad(self.ffn_usage, ((0, 1), (0, 0))),
            own_usage=Trait(of=of.ravel(), usage=values),
            limits=np.append(self.limits, 1 - 0.5 / len(selection)),
        )

    def normalised(self) -> tuple[PointProblem, float, float]:
        """The objective above its least, in units of the most that it can sum to.

        With it, the least and the unit. Tolerances then mean the same for objectives of any size
        and sign.
        """
        items = self.items
        potentials = items.potentials(self.objective)
        above = self.objective - (potentials[items.last + 1] - potentials[items.first])
        most = np.zeros(items.num_layers)
        for length in range(int((items.last - items.first).max()) + 1):
            long_enough = items.last - items.first >= length
            np.maximum.at(most, items.first[long_enough] + length, above[long_enough])
        spread = float(most.sum()) or 1.0
        scaled = replace(self, objective=np.maximum(above, 0.0) / spread, offset=0.0)
        return scaled, float(potentials[-1]) + self.offset, spread
