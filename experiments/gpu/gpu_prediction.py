"""What a measured profile says of the models of the GPU check, and the floor of their steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gpu_setting import Setting

from puzzle_search.arch import ArchitectureSpec
from puzzle_search.cost import CostTable, OperatingPoint, Profile, Scenario, build_cost_table
from puzzle_search.cost.measured.work import head_work, least_us, subblock_work
from puzzle_search.cost.pricing import covered_points
from puzzle_search.cost.step import Step
from puzzle_search.cost.table import ScenarioCost
from puzzle_search.solve.question.targets import profile_target

Entry = dict[str, Any]


class Prediction:
    """Predicts by one profile.

    Args:
        setting: what is predicted of.
        folder: of the profile.
    """

    def __init__(self, setting: Setting, folder: Path) -> None:
        self.setting = setting
        self.profile = Profile.from_folder(folder)
        self.target = profile_target(self.profile)

    def added_to(self, entries: dict[str, Entry]) -> dict[str, Entry]:
        """Measured entries, with what is predicted of those that do not say it yet."""
        return {key: self._of(entry) | entry for key, entry in entries.items()}

    def _of(self, entry: Entry) -> Entry:
        spec = self.setting.specs.get(entry.get("model", ""))
        if spec is None or "batch" not in entry:
            return {}
        if "scenario" in entry:
            scenario = Scenario.parse(entry["scenario"])
            return figures(self.cost_at(spec, scenario, entry["batch"]))
        return {
            "predicted_ms": self.step_ms(spec, entry["batch"]),
            "floor_ms": self.floor_ms(spec, entry["batch"]),
        }

    def best(self, spec: ArchitectureSpec, scenario: Scenario) -> ScenarioCost | None:
        """At the batch that is predicted to be best; None where none fits in memory."""
        return self.table(spec, scenario, self.target.batches).best_cost(spec)

    def cost_at(self, spec: ArchitectureSpec, scenario: Scenario, batch: int) -> ScenarioCost:
        """At one batch size."""
        return self.table(spec, scenario, (batch,)).cost(spec, 0)

    def table(
        self, spec: ArchitectureSpec, scenario: Scenario, batches: tuple[int, ...]
    ) -> CostTable:
        """Costs of an architecture at those of the batch sizes that the profile covers."""
        variants: dict[str, list[str]] = {
            "attention": sorted({block.attention for block in spec.blocks}),
            "ffn": sorted({block.ffn for block in spec.blocks}),
        }
        points = [OperatingPoint(batch=size, tp=1) for size in batches]
        points = covered_points(self.target, scenario, points, **variants)
        return build_cost_table(self.setting.config, self.target, scenario, points, **variants)

    def step_ms(self, spec: ArchitectureSpec, batch: int) -> float:
        """Sum of the profiled parts of a decode step."""
        step = Step.of(tp=1, decoding=batch, decode_context=self.setting.floor_context)
        us = float(self.profile.outside_us(step))
        for block in spec.blocks:
            for subblock, variant in (("attention", block.attention), ("ffn", block.ffn)):
                us += float(self.profile.subblock_us(subblock, variant, step))  # type: ignore[arg-type]
        return us / 1e3

    def floor_ms(self, spec: ArchitectureSpec, batch: int) -> float:
        """Every operator at the rates of copies and matrix products that the profile measured."""
        config, dtype = self.setting.config, self.profile.dtype
        ceilings = self.profile.sidecar["ceilings"]
        work = [head_work(config, dtype, batch=batch, tp=1)]
        for block in spec.blocks:
            for variant in (block.attention_variant, block.ffn_variant):
                work += subblock_work(
                    variant,
                    config,
                    dtype,
                    batch=batch,
                    tokens=1,
                    context=self.setting.floor_context,
                    tp=1,
                )
        flops, copies = ceilings["matmul_flops_per_second"], ceilings["copy_bytes_per_second"]
        return least_us(work, flops, copies) / 1e3


def figures(cost: ScenarioCost) -> Entry:
    """What an entry says of a prediction."""
    return {
        "predicted_tps": cost.tokens_per_second_per_gpu,
        "predicted_ttft_ms": cost.ttft_ms,
        "predicted_tpot_ms": cost.tpot_ms,
    }
