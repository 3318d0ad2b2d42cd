"""The core of a point problem as a mixed-integer program.

Costs mostly do not depend on the layer, so time and memory of an architecture follow from how
often each attention and each FFN variant occurs. The programs say so: limits bind integer counts,
and once these are branched on, what is left is a transportation problem, whose relaxation is
nearly integral. On score tables whose layers resemble each other this closes in under a second
what the plain knapsack formulation leaves open for minutes (docs/findings.md).
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from puzzle_search.solve.problem.items import Floats, Selection
from puzzle_search.solve.problem.point import PointProblem
from puzzle_search.solve.search.exact.program import Program, ProgramSolver

# Weights of items that are out of the question stand here, in units of what is at stake.
_OUT_OF_QUESTION = 2.0
# Damage adds up over subblocks if it does so to this part of the largest.
_ADDS_UP = 1e-12
_INTEGRAL = 1e-5
_RECOVERY_SECONDS = 10.0


class Formulation(Protocol):
    """A program, and what its variables mean."""

    program: Program

    def selection(self, values: Floats, solve: ProgramSolver) -> Selection | None:
        """The items that an answer of the program takes."""
        ...


class WholeItems:
    """One variable an item.

    Args:
        point: the problem.
        columns: items that may be taken.
        weights: of these, in units of what is at stake.
        cutoff: weight that an answer must stay below.
    """

    def __init__(
        self, point: PointProblem, columns: Selection, weights: Floats, cutoff: float
    ) -> None:
        items = point.items
        self.program = program = Program()
        self._columns = columns
        variables = program.add(np.minimum(weights, _OUT_OF_QUESTION), whole=True)
        for layer in range(items.num_layers):
            covers = (items.first[columns] <= layer) & (layer <= items.last[columns])
            covering = variables[covers].tolist()
            program.rows.append((covering, [1.0] * len(covering), 1.0, 1.0))
        used: list[dict[int, float]] = [{} for _ in point.limits]
        for trait in point.traits:
            program.use(used, variables, trait.of[columns], trait.usage)
        program.limit(used, point.limits, cutoff)

    def selection(self, values: Floats, solve: ProgramSolver) -> Selection | None:
        """The items taken."""
        return self._columns[values[: len(self._columns)] > 0.5]


class Subblocks:
    """Attention and FFN apart, where all that depends on the layer adds up over the two.

    Two transportation problems, integral once the counts are (Hoffman and Kruskal 1956): as long
    as only the objective or one limit depends on the layer, only the counts need be integer, a
    dozen variables instead of hundreds.

    Args:
        point: the problem.
        pairs: which items may be taken.
        weights: of all items of the problem, in units of what is at stake.
        cutoff: weight that an answer must stay below.

    Raises:
        DoesNotAddUp: weights or uses are no sums over the two.
    """

    def __init__(self, point: PointProblem, pairs: _Pairs, weights: Floats, cutoff: float) -> None:
        self.program = program = Program()
        self._pairs = pairs
        of_objective = pairs.split(weights)
        usages = [point.attention_usage.copy(), point.ffn_usage.copy()]
        of_rows: list[tuple[int, tuple[Floats, Floats]]] = []
        own = point.own_usage
        for row, amounts in enumerate(() if own is None else own.usage[:, own.of]):
            parts = pairs.split(amounts)
            of_attention = _by_variant(parts[0], pairs.kept[0])
            of_ffn = _by_variant(parts[1], pairs.kept[1])
            if of_attention is None or of_ffn is None:
                of_rows.append((row, parts))
            else:  # counts tell it all
                usages[0][row] += of_attention
                usages[1][row] += of_ffn
        whole = len(of_rows) + point.objective_by_layer > 1
        used: list[dict[int, float]] = [{} for _ in point.limits]
        self._variables: list[NDArray[np.intp]] = []
        for part, usage in enumerate(usages):
            layer, variant = np.nonzero(pairs.kept[part])
            variables = program.add(of_objective[part][layer, variant], whole=whole)
            for number in range(pairs.num_layers):
                covering = variables[layer == number].tolist()
                program.rows.append((covering, [1.0] * len(covering), 1.0, 1.0))
            program.use(used, variables, variant, usage)
            for row, parts in of_rows:
                amounts = parts[part][layer, variant].tolist()
                for variable, amount in zip(variables.tolist(), amounts, strict=True):
                    used[row][variable] = used[row].get(variable, 0.0) + amount
            table = np.full(pairs.kept[part].shape, -1)
            table[layer, variant] = variables
            self._variables.append(table)
        program.limit(used, point.limits, cutoff)

    def selection(self, values: Floats, solve: ProgramSolver) -> Selection | None:
        """The items taken."""
        if np.abs(values - np.rint(values)).max() > _INTEGRAL:
            # Counts are integer, and some integral solution is as good: solve for that one.
            counts = np.array(self.program.whole)
            whole, _ = solve(self.program.fixed(values, counts), _RECOVERY_SECONDS)
            if whole is None:
                return None
            values = whole
        attention, ffn = (
            np.where(table >= 0, values[table], -1.0).argmax(axis=1) for table in self._variables
        )
        taken: Selection = self._pairs.items[np.arange(len(attention)), attention, ffn]
        return taken


class DoesNotAddUp(Exception):
    """What a pair of variants costs is not the sum of what the two cost."""


class _Pairs:
    """The pairs of variants that may be taken, as a table over layers.

    Attributes:
        kept: (layers, attention variants) and (layers, FFN variants), which variants may be taken.
        items: (layers, attention variants, FFN variants), the items of the pairs.
    """

    def __init__(self, point: PointProblem, columns: Selection) -> None:
        items = point.items
        if not items.one_layer_each:
            raise DoesNotAddUp
        shape = (items.num_layers, point.attention_usage.shape[1], point.ffn_usage.shape[1])
        self.items = np.full(shape, -1)
        self.items[items.first, items.attention, items.ffn] = np.arange(len(items))
        offered = np.zeros(shape, dtype=bool)
        offered[items.first[columns], items.attention[columns], items.ffn[columns]] = True
        self.kept: tuple[NDArray[np.bool_], NDArray[np.bool_]] = (
            np.any(offered, axis=2),
            np.any(offered, axis=1),
        )
        self._either: NDArray[np.bool_] = np.logical_and(
            self.kept[0][:, :, None], self.kept[1][:, None, :]
        )
        if (self.items[self._either] < 0).any():
            raise DoesNotAddUp  # a pair of kept variants is not offered
        cheapest = np.full(shape, np.inf)
        cheapest[offered] = point.objective[self.items[offered]]
        first = cheapest.reshape(shape[0], -1).argmin(axis=1)
        self._reference = (first // shape[2], first % shape[2])

    @property
    def num_layers(self) -> int:
        """Layers to choose for."""
        return len(self.items)

    def split(self, values: Floats) -> tuple[Floats, Floats]:
        """Values of items as sums of (layers, attention variants) and (layers, FFN variants).

        Only of variants that are kept; others are without meaning.

        Raises:
            DoesNotAddUp: they are no sums.
        """
        layers = np.arange(self.num_layers)
        table = np.where(self.items >= 0, values[self.items], np.nan)
        attention = table[layers, :, self._reference[1]]
        ffn = table[layers, self._reference[0], :]
        ffn = ffn - attention[layers, self._reference[0]][:, None]
        off = np.abs(attention[:, :, None] + ffn[:, None, :] - table)[self._either]
        if not (off <= _ADDS_UP * np.abs(values).max(initial=0.0)).all():
            raise DoesNotAddUp
        return np.nan_to_num(attention), np.nan_to_num(ffn)


def _by_variant(part: Floats, kept: NDArray[np.bool_]) -> Floats | None:
    """(variants,), the value in every layer that keeps the variant; None if layers differ."""
    most = np.where(kept, part, -np.inf).max(axis=0)
    least = np.where(kept, part, np.inf).min(axis=0)
    used = kept.any(axis=0)
    return np.where(used, most, 0.0) if (most == least)[used].all() else None


def formulate_core(
    point: PointProblem, columns: Selection, weights: Floats, cutoff: float
) -> Formulation:
    """The best formulation of the items that may be taken.

    Args:
        point: the problem.
        columns: items that may be taken.
        weights: of all items of the problem, in units of what is at stake.
        cutoff: weight that an answer must stay below.
    """
    try:
        return Subblocks(point, _Pairs(point, columns), weights, cutoff)
    except DoesNotAddUp:
        return WholeItems(point, columns, weights[columns], cutoff)
