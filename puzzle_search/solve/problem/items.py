"""Replacements to choose from, each in the place of a run of layers, and the cheapest cover."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
# One item for each run of layers that the answer is made of, in order.
Selection = NDArray[np.intp]


@dataclass(frozen=True, kw_only=True)
class Items:
    """One row a replacement; a selection covers every layer exactly once.

    Attributes:
        num_layers: layers to cover.
        first: (items,), first layer that the item stands for; ascending with ``last``.
        last: (items,), last one.
        attention: (items,), index of its attention variant.
        ffn: (items,), index of its FFN variant.
    """

    num_layers: int
    first: NDArray[np.intp]
    last: NDArray[np.intp]
    attention: NDArray[np.intp]
    ffn: NDArray[np.intp]

    def __len__(self) -> int:
        return len(self.first)

    @cached_property
    def _starts(self) -> NDArray[np.intp]:
        """Where each run's items begin."""
        new = (np.diff(self.first) != 0) | (np.diff(self.last) != 0)
        return np.concatenate([[0], np.flatnonzero(new) + 1]).astype(np.intp)

    @cached_property
    def run_of(self) -> NDArray[np.intp]:
        """(items,), number of the run of layers that each item stands for."""
        sizes = np.diff(np.append(self._starts, len(self)))
        return np.repeat(np.arange(len(sizes)), sizes)

    @cached_property
    def one_layer_each(self) -> bool:
        """Whether no item stands for several layers."""
        return bool((self.first == self.last).all())

    def kept(self, mask: NDArray[np.bool_]) -> Items:
        """Only some of the items."""
        return Items(
            num_layers=self.num_layers,
            first=self.first[mask],
            last=self.last[mask],
            attention=self.attention[mask],
            ffn=self.ffn[mask],
        )

    def usable(self) -> NDArray[np.bool_]:
        """(items,), which items are part of some selection at all."""
        reached = np.isfinite(self.potentials(np.zeros(len(self))))
        onwards = np.zeros(self.num_layers + 1, dtype=bool)
        onwards[-1] = True
        for item in range(len(self) - 1, -1, -1):
            onwards[self.first[item]] |= onwards[self.last[item] + 1]
        usable: NDArray[np.bool_] = reached[self.first] & onwards[self.last + 1]
        return usable

    def uncovered_layer(self) -> int | None:
        """A layer that cannot be covered, if there is one."""
        potentials = self.potentials(np.zeros(len(self)))
        if np.isfinite(potentials[-1]):
            return None
        return int(np.isfinite(potentials).nonzero()[0].max())

    def cheapest(self, costs: Floats) -> Selection:
        """The selection of least summed cost. Every layer can be covered."""
        least, item = self._least_of_runs(costs)
        if self.one_layer_each:
            return item
        _, run_before = self._forward(least)
        selection, boundary = [], self.num_layers
        while boundary:
            run = int(run_before[boundary])
            selection.append(item[run])
            boundary = int(self.first[item[run]])
        return np.array(selection[::-1], dtype=np.intp)

    def potentials(self, costs: Floats) -> Floats:
        """(layers + 1,), least cost to cover the layers before each boundary.

        An item's cost above the difference of its boundaries' potentials is never negative, and
        sums to the selection's cost less the last potential.
        """
        if not len(self):
            return np.append(0.0, np.full(self.num_layers, np.inf))
        return self._forward(self._least_of_runs(costs)[0])[0]

    def above_cheapest(self, costs: Floats) -> Floats:
        """(items,), how much more than the cheapest selection one costs that has the item."""
        least, _ = self._least_of_runs(costs)
        if self.one_layer_each:
            return costs - least[self.run_of]
        before = self._forward(least)[0]
        after = np.full(self.num_layers + 1, np.inf)
        after[-1] = 0.0
        for run in range(len(least) - 1, -1, -1):
            item = self._starts[run]
            total = least[run] + after[self.last[item] + 1]
            after[self.first[item]] = min(after[self.first[item]], total)
        with np.errstate(invalid="ignore"):
            above: Floats = before[self.first] + costs + after[self.last + 1] - before[-1]
        return np.where(np.isnan(above), np.inf, above)

    def _least_of_runs(self, costs: Floats) -> tuple[Floats, Selection]:
        """Least cost of each run of layers, and its first item."""
        least: Floats = np.minimum.reduceat(costs, self._starts)
        at_least = np.flatnonzero(costs == least[self.run_of])
        first = np.searchsorted(self.run_of[at_least], np.arange(len(least)))
        return least, at_least[first]

    def _forward(self, least: Floats) -> tuple[Floats, NDArray[np.intp]]:
        """Least cost before each boundary, and the run that ends there."""
        if self.one_layer_each and len(least) == self.num_layers:
            return np.append(0.0, np.cumsum(least)), np.arange(-1, self.num_layers)
        potentials = np.append(0.0, np.full(self.num_layers, np.inf))
        run_before = np.full(self.num_layers + 1, -1)
        for run, cost in enumerate(least):
            item = self._starts[run]
            total = potentials[self.first[item]] + cost
            if total < potentials[self.last[item] + 1]:
                potentials[self.last[item] + 1] = total
                run_before[self.last[item] + 1] = run
        return potentials, run_before
