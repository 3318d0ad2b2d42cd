"""A solution as people read it: beside its parent, with its prices and origins."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from typing import Any

from puzzle_search.arch import (
    ArchitectureSpec,
    ParentConfig,
    architecture_parameters,
    mean_kv_values_per_token,
)
from puzzle_search.cost import CostTable, ScenarioCost, Target
from puzzle_search.cost.simulation import Simulated
from puzzle_search.solve.answers.certainty import Certainty
from puzzle_search.solve.answers.prices import prices
from puzzle_search.solve.answers.ruin import Ruin
from puzzle_search.solve.search.solution import Solution


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A solution for a known parent.

    Attributes:
        solution: the architecture with its proof.
        config: the parent.
        origins: what was asked, and hashes of what it was answered from.
        simulated: what clients see in each scenario, None where neither their number nor their rate
            was asked.
        certainty: what of it holds within the scores' standard errors, where that was asked.
        ruin: that it wrecks the model, where it does.
    """

    solution: Solution
    config: ParentConfig
    origins: Mapping[str, Any] = field(default_factory=dict)
    simulated: tuple[Simulated | None, ...] = ()
    certainty: Certainty | None = None
    ruin: Ruin | None = None

    @property
    def remarks(self) -> list[str]:
        """What its user should know before going on."""
        found = [str(self.ruin)] if self.ruin else []
        for workload in self.solution.problem.workloads:
            if missing := _unmeasured(workload.table):
                found.append(
                    f"{workload.table.scenario}: batch sizes {missing} were not measured for every "
                    "variant, mostly since the largest did not fit: they are not searched, though "
                    "a child might fit; profile more, or a smaller search space"
                )
        return found

    @property
    def parent_costs(self) -> list[ScenarioCost | None]:
        """The parent in each scenario, at its best operating point; None where it does not fit."""
        parent = ArchitectureSpec.identity(self.config)
        return [w.table.best_cost(parent) for w in self.solution.problem.workloads]

    def interval(self, cost: ScenarioCost) -> list[float] | None:
        """Tokens/s/GPU that a measurement may find, nine in ten times; None where nobody knows."""
        error, predicted = self._target.error_p90, cost.tokens_per_second_per_gpu
        if error is None or error >= 1:
            return None
        return [predicted / (1 + error), predicted / (1 - error)]

    @property
    def parameters(self) -> int:
        """Parameters of the child."""
        return architecture_parameters(self.solution.spec, self.config)

    @property
    def kv_bytes_per_token(self) -> int:
        """KV cache of the longest requests over all devices, by their tokens."""
        workloads = self.solution.problem.workloads
        tokens = max(workload.table.scenario.tokens for workload in workloads)
        values = mean_kv_values_per_token(self.solution.spec, self.config, tokens)
        return values * self._target.dtype.kv_bytes

    @property
    def evidence(self) -> dict[str, str]:
        """Where scores and costs come from."""
        return {
            "scores": self.solution.problem.score_evidence,
            "cost": self._target.latency.evidence,
        }

    def as_dict(self) -> dict[str, Any]:
        """The answer as ``solve --json`` prints it."""
        spec = self.solution.spec
        shown = {
            **self.solution.proof(),
            "architecture": {
                "parent": spec.parent,
                "blocks": [block.as_dict() for block in spec.blocks],
            },
            "params": self.parameters,
            "kv_bytes_per_token": self.kv_bytes_per_token,
            "scenarios": [
                cost.as_dict()
                | {"tokens_per_second_per_gpu_interval": self.interval(cost)}
                | ({"simulated": seen.as_dict()} if seen else {})
                for cost, seen in zip_longest(self.solution.costs, self.simulated)
            ],
            "prices": [price.as_dict() for price in prices(self.solution)],
            "evidence": self.evidence,
        }
        shown |= {"certainty": self.certainty.as_dict()} if self.certainty else {}
        shown |= {"ruin": self.ruin.as_dict()} if self.ruin else {}
        return shown | ({"remarks": self.remarks} if self.remarks else {})

    @property
    def spec(self) -> ArchitectureSpec:
        """The architecture, carrying how it was found."""
        found = {key: value for key, value in self.as_dict().items() if key != "architecture"}
        return replace(self.solution.spec, solution=found | dict(self.origins))

    @property
    def _target(self) -> Target:
        return self.solution.problem.workloads[0].table.target


def _unmeasured(table: CostTable) -> str:
    """Batch sizes of a profile's target that its table lacks, in ranges."""
    priced = {point.batch for point in table.points}
    ranges: list[list[int]] = []
    before = None
    for batch in table.target.batches:
        if batch not in priced:
            if ranges and ranges[-1][-1] == before:
                ranges[-1].append(batch)
            else:
                ranges.append([batch])
        before = batch
    return ", ".join(f"{r[0]} to {r[-1]}" if len(r) > 1 else str(r[0]) for r in ranges)
