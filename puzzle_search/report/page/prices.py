"""What children cost in one scenario: at their operating point, over batch sizes, by variant."""

from __future__ import annotations

import math
from collections.abc import Sequence

from puzzle_search.arch import ArchitectureSpec, BlockChoice, Subblock, Variant
from puzzle_search.cost import OperatingPoint, Scenario, ScenarioCost, SubblockCosts, Target
from puzzle_search.cost.memory import kv_bytes, outside_bytes, weight_bytes
from puzzle_search.cost.modelled.analytic import AnalyticLatency
from puzzle_search.cost.table import SpecCosts
from puzzle_search.solve.question.setting import Setting, solved_for

_DIGITS = 5
_CURVE_STEP = 1.06  # from batch size to batch size of a curve


class Prices:
    """Costs of specs in one scenario.

    Args:
        setting: what they are held against.
        scenario: the workload.
        specs: all that will be priced.
        as_solved: whether to price a spec at the operating point that it says it was solved for.
    """

    def __init__(
        self,
        setting: Setting,
        scenario: Scenario,
        specs: Sequence[ArchitectureSpec],
        *,
        as_solved: bool,
    ) -> None:
        self._setting, self.scenario, self._as_solved = setting, scenario, as_solved
        solved = [point for spec in specs if (point := self._solved_at(spec)) is not None]
        self._table = setting.cost_table(scenario, specs, also=solved)
        self._spread = _spread(self._table.points)

    def cost(self, spec: ArchitectureSpec) -> ScenarioCost | None:
        """At the point it was solved for, else where it is fastest; None if it fits nowhere."""
        index = self._own_point(spec, self._table.of(spec))
        return None if index is None else self._table.cost(spec, index)

    def _own_point(self, spec: ArchitectureSpec, costs: SpecCosts) -> int | None:
        solved = self._solved_at(spec)
        if solved is not None:
            return self._table.points.index(solved)
        return costs.fastest(costs.fits)

    def _solved_at(self, spec: ArchitectureSpec) -> OperatingPoint | None:
        if self._as_solved:
            for scenario, point, gpu in solved_for(spec):
                if scenario == self.scenario and gpu == self._setting.target.gpu:
                    return point
        return None

    def serving(self, spec: ArchitectureSpec) -> list[list[float | None]]:
        """Batch, TP, tok/s/user, tok/s/GPU and TTFT in ms, where nothing is better in both rates.

        Nothing for scenarios of one output token, in which no user waits for a second one.
        """
        if not self.scenario.decode_steps:
            return []
        at = self._table.of(spec)
        own = self._own_point(spec, at)
        per_user, per_gpu, fits = (
            at.tokens_per_second_per_user, at.tokens_per_second_per_gpu, at.fits,
        )  # fmt: skip
        kept: list[list[float | None]] = []
        most = 0.0
        # The point that the page prices the child at is on its curve, whatever lies between.
        for index in sorted({*self._spread, *(() if own is None else (own,))},
                            key=lambda index: -per_user[index]):  # fmt: skip
            if fits[index] and per_gpu[index] > most:
                most, point = float(per_gpu[index]), self._table.points[index]
                rates = (float(per_user[index]), most, float(at.ttft_ms[index]))
                kept.append([point.batch, point.tp, *map(rounded, rates)])
        return kept

    def memory(self, spec: ArchitectureSpec, cost: ScenarioCost) -> dict[str, int]:
        """Bytes on one device: weights, KV cache of a full batch, and what else a step holds."""
        config, dtype = self._setting.config, self._setting.target.dtype
        tp, tokens = cost.point.tp, self.scenario.tokens
        weights = outside_bytes(config, dtype, tp)
        kv = 0
        for variant in _variants(spec.blocks):
            weights += weight_bytes(variant, config, dtype, tp)
            kv += cost.point.batch * kv_bytes(variant, config, dtype, tp, tokens)
        return {"weights": weights, "kv": kv, "activations": cost.memory_bytes - weights - kv}

    def by_variant(
        self, point: OperatingPoint, variants: dict[Subblock, list[str]]
    ) -> dict[str, dict[str, list[float | None]]]:
        """Time of a batch in us and bytes on one device of each variant, at an operating point."""
        index = self._table.points.index(point)
        tables: dict[Subblock, SubblockCosts] = {
            "attention": self._table.attention,
            "ffn": self._table.ffn,
        }
        shown: dict[str, dict[str, list[float | None]]] = {}
        for subblock, costs in tables.items():
            columns = costs.columns(variants[subblock])
            shown[subblock] = {
                "time_us": [rounded(value) for value in costs.total_us[index][columns]],
                "memory_bytes": [rounded(value) for value in costs.memory_bytes[index][columns]],
            }
        return shown


def _spread(points: Sequence[OperatingPoint]) -> list[int]:
    """Points whose batch sizes differ by a few percent; nobody sees a curve through all of them."""
    chosen: list[int] = []
    last: dict[int, int] = {}
    for index in sorted(range(len(points)), key=lambda index: points[index].batch):
        point = points[index]
        if point.batch >= _CURVE_STEP * last.get(point.tp, 0):
            chosen.append(index)
            last[point.tp] = point.batch
    return chosen


def device_bytes(target: Target) -> int | None:
    """Memory of the device, what the engine keeps for itself included; None where not known."""
    if target.measured is not None:
        return int(target.measured.sidecar["device"]["memory_bytes"])
    if isinstance(target.latency, AnalyticLatency):
        return int(target.latency.sheet.hbm_bytes)
    return None


def rounded(value: float | None) -> float | None:
    """A number at the precision that a page needs; None where there is none, or none finite."""
    return None if value is None or not math.isfinite(value) else float(f"{value:.{_DIGITS}g}")


def _variants(blocks: Sequence[BlockChoice]) -> list[Variant]:
    return [v for block in blocks for v in (block.attention_variant, block.ffn_variant)]
