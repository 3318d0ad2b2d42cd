"""The search problem: damage of every replacement, what it costs, and what may be used."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from puzzle_search.arch import ArchitectureSpec, BlockChoice, Replacement
from puzzle_search.cost import CostTable
from puzzle_search.solve.problem.items import Floats, Items, Selection
from puzzle_search.solve.problem.limits import Limits
from puzzle_search.solve.problem.measures import Bound, Measure, scenario_measures
from puzzle_search.solve.problem.point import PointProblem, Trait

# Limits of a point problem are wider by this part, so that rounding excludes nothing that keeps
# the real ones; answers are checked against these (`Problem.holds`).
_ROUNDING = 1e-12
# An item that alone exceeds a limit is impossible, however far it goes beyond.
_IMPOSSIBLE = 2.0
# Who passes a limit by more than rounding is not priced to the last digit.
_NEARLY = 1e-9
_SMALLEST = float(np.finfo(np.float64).tiny)


@dataclass(frozen=True, kw_only=True)
class Workload:
    """A scenario priced at every operating point, with the limits in it on this device.

    ``margin`` is the part by which the limits keep away from what was asked.
    """

    table: CostTable
    limits: Limits
    margin: float = 0.0

    def looser(self, factor: float) -> Workload:
        """Every limit further away by a factor, memory no further than the device has."""
        device = self.table.target.memory_limit_bytes / (1 + self.margin)
        looser = self.limits.looser(factor)
        memory = None if looser.memory_bytes is None else min(looser.memory_bytes, device)
        return replace(self, limits=replace(looser, memory_bytes=memory))

    def bounds(self, scenario: int) -> list[Bound]:
        """The limits as bounds on sums."""
        limits, measures = self.limits, scenario_measures(self.table, scenario)
        found = []
        if limits.tokens_per_second_per_gpu is not None:
            longest = 1e6 / limits.tokens_per_second_per_gpu
            found.append(("tokens_per_second_per_gpu", "us_per_token", longest))
        if limits.tokens_per_second_per_user is not None:
            slowest = 1e3 / limits.tokens_per_second_per_user
            found.append(("tokens_per_second_per_user", "tpot_ms", slowest))
        if limits.requests_per_second is not None:
            longest = 1e6 / limits.requests_per_second
            found.append(("requests_per_second", "us_per_request", longest))
        for name in ("memory_bytes", "ttft_ms", "tpot_ms", "latency_ms"):
            if (at_most := getattr(limits, name)) is not None:
                found.append((name, name, at_most))
        return [
            Bound(limit=limit, measure=measures[name], at_most=at_most, margin=self.margin)
            for limit, name, at_most in found
        ]

    @classmethod
    def on_device(cls, table: CostTable, limits: Limits, *, margin: float = 0.0) -> Workload:
        """Within the device's memory too, predictions kept away from all limits by ``margin``."""
        on_device = limits.on_device(table.target.memory_limit_bytes)
        return cls(table=table, limits=on_device.looser(1 / (1 + margin)), margin=margin)


@dataclass(frozen=True, kw_only=True)
class Region:
    """Operating points that are looked at together: for each scenario, indices into its table."""

    points: tuple[tuple[int, ...], ...]

    @property
    def is_single(self) -> bool:
        """Whether one operating point is left in every scenario."""
        return all(len(points) == 1 for points in self.points)

    def halves(self) -> tuple[Region, Region]:
        """Two regions, from halving the scenario with the most points."""
        widest = max(range(len(self.points)), key=lambda i: len(self.points[i]))
        points = self.points[widest]
        middle = len(points) // 2
        low, high = (
            (*self.points[:widest], half, *self.points[widest + 1 :])
            for half in (points[:middle], points[middle:])
        )
        return Region(points=low), Region(points=high)


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Choose replacements that cover every layer once, for the least of one measure.

    Attributes:
        parent: name of the model.
        items: the replacements to choose from.
        attention: names of the attention variants that ``items`` index.
        ffn: names of the FFN variants.
        damage: (items,).
        goal: what to minimise.
        workloads: scenarios with their limits; all at one TP degree, each at its own batch size.
        bounds: limits of the child itself.
        score_evidence: where the damages come from.
    """

    parent: str
    items: Items
    attention: tuple[str, ...]
    ffn: tuple[str, ...]
    damage: Floats
    goal: Measure
    workloads: tuple[Workload, ...]
    bounds: tuple[Bound, ...]
    score_evidence: str

    @cached_property
    def all_bounds(self) -> tuple[Bound, ...]:
        """Limits in every scenario, then of the child itself."""
        scenarios = (w.bounds(number) for number, w in enumerate(self.workloads))
        return (*(bound for found in scenarios for bound in found), *self.bounds)

    @cached_property
    def _rows(self) -> tuple[_Row, ...]:
        return tuple(_Row.of(bound, self.items) for bound in self.all_bounds)

    def regions(self) -> list[Region]:
        """All operating points whose limits leave room for the blocks, one region a TP degree."""
        if not self.workloads:
            return [Region(points=())]
        by_tp: list[dict[int, list[int]]] = []
        for scenario, workload in enumerate(self.workloads):
            possible = np.ones(len(workload.table.points), dtype=bool)
            for bound in self.all_bounds:
                if bound.measure.scenario == scenario:
                    possible &= bound.measure.outside <= bound.at_most
            degrees: dict[int, list[int]] = {}
            for index in np.flatnonzero(possible):
                degrees.setdefault(workload.table.points[index].tp, []).append(int(index))
            by_tp.append(degrees)
        shared = set.intersection(*(set(degrees) for degrees in by_tp))
        return [
            Region(points=tuple(tuple(degrees[tp]) for degrees in by_tp)) for tp in sorted(shared)
        ]

    def at(self, region: Region) -> PointProblem:
        """The problem at an operating point; for several, one that allows no less than any."""
        items, goal = self.items, self.goal
        points = _points(region, goal.scenario)
        objective = goal.attention[points].min(axis=0)[items.attention]
        objective = objective + goal.ffn[points].min(axis=0)[items.ffn]
        if goal.items is not None:
            objective = objective + goal.items
        at = [(row, _points(region, row.scenario)) for row in self._rows]
        attention = [row.attention[indices].min(axis=0) for row, indices in at]
        ffn = [row.ffn[indices].min(axis=0) for row, indices in at]
        return PointProblem(
            items=items,
            objective=objective,
            objective_by_layer=goal.items is not None,
            offset=float(goal.outside[points].min()),
            attention_usage=np.array(attention).reshape(len(at), len(self.attention)),
            ffn_usage=np.array(ffn).reshape(len(at), len(self.ffn)),
            own_usage=self._own_usage,
            limits=np.array([row.limit for row in self._rows]),
        )

    @cached_property
    def _own_usage(self) -> Trait | None:
        """What items use beyond their variants; equal uses are one value of the trait."""
        if all(row.items is None for row in self._rows):
            return None
        usage = np.stack(
            [np.zeros(len(self.items)) if r.items is None else r.items for r in self._rows]
        )
        values, of = np.unique(usage, axis=1, return_inverse=True)
        return Trait(of=of.ravel(), usage=values)

    def score(self, selection: Selection) -> float:
        """Summed damage."""
        return float(self.damage[selection].sum())

    def spec(self, selection: Selection) -> ArchitectureSpec:
        """The architecture of a selection."""
        items = self.items
        return ArchitectureSpec(
            parent=self.parent,
            blocks=tuple(
                BlockChoice(
                    attention=self.attention[items.attention[item]],
                    ffn=self.ffn[items.ffn[item]],
                    layers=tuple(range(items.first[item], items.last[item] + 1)),
                )
                for item in selection
            ),
        )

    @cached_property
    def replacements(self) -> list[Replacement]:
        """What every item stands for, both variants by name."""
        items = self.items
        columns = (items.first.tolist(), items.last.tolist(), items.attention, items.ffn)
        return [
            (first, last, self.attention[attention], self.ffn[ffn])
            for first, last, attention, ffn in zip(*columns, strict=True)
        ]

    def selection(self, spec: ArchitectureSpec) -> Selection:
        """The items of an architecture.

        Raises:
            ValueError: the problem does not offer one of its blocks.
        """
        found = {replacement: item for item, replacement in enumerate(self.replacements)}
        try:
            return np.array([found[block.replacement] for block in spec.blocks])
        except KeyError as error:
            raise ValueError(f"block {error} is not in the problem") from error

    def holds(self, selection: Selection, points: Sequence[int]) -> bool:
        """Whether a selection keeps every limit at one point of each scenario, as reported."""
        spec = self.spec(selection)
        return self._child_holds(selection) and all(
            workload.limits.kept_by(workload.table.cost(spec, index))
            for workload, index in zip(self.workloads, points, strict=True)
        )

    def operating_points(self, selection: Selection) -> tuple[int, ...] | None:
        """The point of each scenario at which to run a selection; None if it keeps no limits.

        All have one TP degree. Among those that keep the limits, the goal decides where it depends
        on the point, else throughput (its geometric mean over the scenarios); where requests arrive
        at a given rate, which is throughput enough, latency in its place.
        """
        if not self._child_holds(selection):
            return None
        kept = [self._kept_points(number, selection) for number in range(len(self.workloads))]
        found: list[tuple[float, float, tuple[int, ...]]] = []
        for region in self.regions():
            points: list[int] = []
            reached, total = 0.0, 0.0
            for scenario, (preferred, keeps) in enumerate(kept):
                possible = [i for i in region.points[scenario] if keeps[i]]
                if not possible:
                    break
                if scenario == self.goal.scenario:
                    goal = self.goal.of(self.items, selection)
                    point = min(possible, key=lambda i: (goal[i], preferred[i]))
                    reached = float(goal[point])
                else:
                    point = min(possible, key=lambda i: float(preferred[i]))
                points.append(point)
                total += float(np.log(preferred[point]))
            else:
                found.append((reached, total, tuple(points)))
        return min(found)[2] if found else None

    def _kept_points(self, scenario: int, selection: Selection) -> tuple[Floats, NDArray[np.bool_]]:
        """What is best small at the points of a scenario, and which of them keep its limits."""
        workload = self.workloads[scenario]
        keeps = np.ones(len(workload.table.points), dtype=bool)
        for bound in self.all_bounds:
            if bound.measure.scenario == scenario:
                near = bound.at_most * (1 + _NEARLY)
                keeps &= bound.measure.of(self.items, selection) <= near
        keeps &= workload.limits.kept_at(workload.table.of(self.spec(selection)))
        is_rated = workload.limits.requests_per_second is not None
        measures = scenario_measures(workload.table, scenario)
        preferred = measures["latency_ms" if is_rated else "us_per_token"]
        return preferred.of(self.items, selection), keeps

    def with_damage(self, damage: Floats) -> Problem:
        """The problem with other damages (items,); its goal is the score."""
        goal = replace(self.goal, items=damage)
        return replace(self, damage=damage, goal=goal)

    def without(self, bound: Bound) -> Problem:
        """The problem without one of its bounds."""
        scenario = bound.measure.scenario
        if scenario is None:
            return replace(self, bounds=tuple(b for b in self.bounds if b is not bound))
        workload = self.workloads[scenario]
        free = replace(workload, limits=replace(workload.limits, **{bound.limit: None}))
        workloads = (*self.workloads[:scenario], free, *self.workloads[scenario + 1 :])
        return replace(self, workloads=workloads)

    def looser(self, factor: float) -> Problem:
        """The problem with every limit further away by a factor, but for devices' memory."""
        return replace(
            self,
            workloads=tuple(w.looser(factor) for w in self.workloads),
            bounds=tuple(
                replace(b, at_most=b.at_most + (factor - 1) * abs(b.at_most)) for b in self.bounds
            ),
        )

    def per_unit(self, prices: Floats, points: Sequence[int]) -> tuple[float, ...]:
        """Prices of a point problem's limits as objective per unit of each bound's measure."""
        return tuple(
            float(price / row.unit[0 if row.scenario is None else points[row.scenario]])
            for price, row in zip(prices, self._rows, strict=True)
        )

    def _child_holds(self, selection: Selection) -> bool:
        for bound in self.bounds:
            value = bound.measure.of(self.items, selection)[0]
            if value > bound.at_most + _ROUNDING * max(1.0, abs(bound.at_most)):
                return False
        return True


@dataclass(frozen=True, kw_only=True)
class _Row:
    """A bound in units of what it leaves the blocks (points,); other arrays as in `Measure`."""

    scenario: int | None
    unit: Floats
    attention: Floats
    ffn: Floats
    items: Floats | None
    limit: float

    @classmethod
    def of(cls, bound: Bound, items: Items) -> _Row:
        measure = bound.measure
        left = bound.at_most - measure.outside
        smallest = min(
            float(part.min(initial=0.0))
            for part in (measure.attention, measure.ffn, measure.items)
            if part is not None
        )
        if smallest >= 0 and (measure.scenario is not None or left[0] > 0):
            unit = np.maximum(left, _SMALLEST)
            with np.errstate(over="ignore"):
                return cls(
                    scenario=measure.scenario,
                    unit=unit,
                    attention=np.minimum(measure.attention / unit[:, None], _IMPOSSIBLE),
                    ffn=np.minimum(measure.ffn / unit[:, None], _IMPOSSIBLE),
                    items=None
                    if measure.items is None
                    else np.minimum(measure.items / unit[0], _IMPOSSIBLE),
                    limit=1 + _ROUNDING,
                )
        largest = sum(
            float(np.abs(part).max(initial=0.0))
            for part in (measure.attention, measure.ffn, measure.items)
            if part is not None
        )
        whole = items.num_layers * largest or abs(float(left[0])) or 1.0
        return cls(
            scenario=None,
            unit=np.array([whole]),
            attention=measure.attention / whole,
            ffn=measure.ffn / whole,
            items=None if measure.items is None else measure.items / whole,
            limit=float(left[0]) / whole + _ROUNDING,
        )


def _points(region: Region, scenario: int | None) -> NDArray[np.intp]:
    return np.array([0] if scenario is None else region.points[scenario], dtype=np.intp)
