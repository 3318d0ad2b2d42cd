"""Stages of the GPU check that run models: predicted, measured, and the floor."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from gpu_setting import PARENT, Setting

from puzzle_search.arch import ArchitectureSpec
from puzzle_search.cost import CostTable, OperatingPoint, Profile, Scenario, build_cost_table
from puzzle_search.cost.table import covered_points
from puzzle_search.cost.work import head_work, least_us, subblock_work
from puzzle_search.errors import InfeasibleError
from puzzle_search.evaluate.sampled import SampledThroughput, sample_throughput, step_seconds
from puzzle_search.evaluate.served_model import free_memory
from puzzle_search.files import Journal
from puzzle_search.profile import Device, open_device
from puzzle_search.runtime import Engine, ServingDecoder, precision_on
from puzzle_search.solve import Limits, ScoreTable, Workload, formulate, solve
from puzzle_search.solve.targets import cost_table, profile_target

Entry = dict[str, Any]

# The solver's answer shall be no slower than its rival: it is asked for a little more.
_MARGIN = 0.02
# A variant that the search space lacks is scored as the next wider one that it has, which favours
# the child that has it: Nemotron-49B's one FFN of width 17,920.
_SCORED_AS = {"mlp_17920": "mlp_21504"}


class Bench:
    """Runs models on one device and keeps what it finds, entry by entry.

    Args:
        setting: what to run.
        device: ``cpu`` or ``cuda``.
        profile: folder of the profile that predicts.
        journal: of entries; those that are in it are not measured again.
        deadline: by `time.monotonic`; no measurement is begun after it.
        effort: contexts, and repeats at each, of a sampled scenario.
    """

    def __init__(
        self,
        setting: Setting,
        device: str,
        profile: Path,
        journal: Journal,
        deadline: float,
        effort: tuple[int, int],
    ) -> None:
        self.setting = setting
        self.device: Device = open_device(device)
        self.profile = Profile.from_folder(profile)
        self.target = profile_target(self.profile)
        self.precision = precision_on(setting.dtype, self.device.torch_device)
        self.journal, self.deadline = journal, deadline
        self.contexts, self.repeats = effort
        self.done = {(entry["key"], entry["turn"]) for entry in journal.read()}

    def all_models(self) -> None:
        """Steps and scenarios of every model, as far as time allows."""
        for turn in range(self.setting.rounds):
            for name, spec in self.setting.specs.items():
                self.one_model(name, spec, turn)

    def one_model(self, name: str, spec: ArchitectureSpec, turn: int) -> None:
        """Steps and scenarios of one model that are not in the journal yet for this turn."""
        scenarios = self.setting.lengths if name == PARENT else self.setting.scenarios
        wanted: list[tuple[str, int | Scenario]] = [
            *((f"{name} {scenario}", scenario) for scenario in scenarios),
            *((f"{name} step {batch}", batch) for batch in self.setting.floor_batches),
        ]
        wanted = [(key, what) for key, what in wanted if (key, turn) not in self.done]
        if not wanted or self.late():
            return
        decoder = self._decoder(spec)
        for key, what in wanted:
            if self.late():
                return
            run = self._step if isinstance(what, int) else self._scenario
            self._keep(key, turn, run(decoder, what))  # type: ignore[arg-type]

    def late(self) -> bool:
        """Whether no further measurement may begin."""
        return time.monotonic() > self.deadline

    def _decoder(self, spec: ArchitectureSpec) -> ServingDecoder:
        free_memory()  # what the last model left, in pieces of other sizes
        device = self.device.torch_device
        return ServingDecoder.random(self.setting.config, spec, self.precision, device)

    def _keep(self, key: str, turn: int, found: Entry) -> None:
        self.journal.append({"key": key, "turn": turn, **found})
        self.done.add((key, turn))
        print(
            key, {name: found[name] for name in found if name.endswith(("_ms", "tps"))}, flush=True
        )

    def _scenario(self, decoder: ServingDecoder, scenario: Scenario) -> Entry:
        """One batch at the size that is predicted to be best."""
        spec = decoder.spec
        table = self._table(spec, scenario)
        best = table.best_cost(spec)
        if best is None:
            return {"skipped": "no batch fits in memory"}
        batch = best.point.batch
        while (found := self._try_sample(decoder, scenario, batch)) is None:
            batch = batch * 9 // 10
            if not batch:
                return {"skipped": "out of memory at batch 1"}
        said = best
        if batch != best.point.batch:
            said = self._table(spec, scenario, batch).cost(spec, 0)
        return {
            "batch": batch,
            "batch_asked": best.point.batch,
            "predicted_tps": said.tokens_per_second_per_gpu,
            "measured_tps": found.tokens_per_second,
            "predicted_ttft_ms": said.ttft_ms,
            "measured_ttft_ms": found.ttft_ms,
            "predicted_tpot_ms": said.tpot_ms,
            "measured_tpot_ms": found.tpot_ms,
        }

    def _try_sample(
        self, decoder: ServingDecoder, scenario: Scenario, batch: int
    ) -> SampledThroughput | None:
        """One batch, or None where it does not fit."""
        try:
            engine = self._engine(decoder, batch, scenario.input_len + scenario.output_len)
            return sample_throughput(
                engine,
                scenario,
                clock=self.device.clock,
                contexts=self.contexts,
                repeats=self.repeats,
            )
        except torch.OutOfMemoryError:
            return None

    def _engine(self, decoder: ServingDecoder, slots: int, max_length: int) -> Engine:
        torch.cuda.empty_cache()
        engine = Engine(decoder, slots=slots, max_length=max_length)
        vocabulary = self.setting.config.vocab_size
        engine.calibrate(torch.randint(vocabulary, (1, min(64, max_length - 1))))
        return engine

    def _step(self, decoder: ServingDecoder, batch: int) -> Entry:
        """One decode step, beside the sum of its profiled parts and beside its floor."""
        context = self.setting.floor_context
        try:
            engine = self._engine(decoder, batch, context + 1)
            engine.cache.randomise()
            seconds = step_seconds(engine, context - 1, self.device.clock, 4 * self.repeats)
        except torch.OutOfMemoryError:
            return {"skipped": "out of memory"}
        return {
            "batch": batch,
            "predicted_ms": sum(self._step_parts_us(decoder.spec, batch, context)) / 1e3,
            "measured_ms": seconds * 1e3,
            "floor_ms": self._floor_us(decoder.spec, batch, context) / 1e3,
        }

    def _step_parts_us(self, spec: ArchitectureSpec, batch: int, context: int) -> Iterator[float]:
        at: dict[str, Any] = {"batch": batch, "tokens": 1, "tp": 1}
        for block in spec.blocks:
            for subblock, variant in (("attention", block.attention), ("ffn", block.ffn)):
                yield float(
                    self.profile.subblock_us(subblock, variant, "decode", context=context, **at)  # type: ignore[arg-type]
                )
        yield float(self.profile.outside_us("decode", **at))

    def _floor_us(self, spec: ArchitectureSpec, batch: int, context: int) -> float:
        """Every operator at the rates of copies and matrix products that the profile measured."""
        config, dtype = self.setting.config, self.precision.dtype
        ceilings = self.profile.sidecar["ceilings"]
        work = [head_work(config, dtype, batch=batch, tp=1)]
        for block in spec.blocks:
            for variant in (block.attention_variant, block.ffn_variant):
                work += subblock_work(
                    variant, config, dtype, batch=batch, tokens=1, context=context, tp=1
                )
        return least_us(
            work, ceilings["matmul_flops_per_second"], ceilings["copy_bytes_per_second"]
        )

    def _table(
        self, spec: ArchitectureSpec, scenario: Scenario, batch: int | None = None
    ) -> CostTable:
        batches = self.target.batches if batch is None else (batch,)
        variants: dict[str, list[str]] = {
            "attention": sorted({block.attention for block in spec.blocks}),
            "ffn": sorted({block.ffn for block in spec.blocks}),
        }
        points = [OperatingPoint(batch=size, tp=1) for size in batches]
        points = covered_points(self.target, scenario, points, **variants)
        return build_cost_table(self.setting.config, self.target, scenario, points, **variants)

    def headline(self, scores: Path) -> None:
        """The solver's own answer at the speed of the references, measured too."""
        setting, scenario = self.setting, self.setting.scenarios[0]
        config = setting.config
        table = ScoreTable.from_file(scores)
        for rival in setting.references:
            found = medians(self.journal.read()).get(f"{rival} {scenario}", {})
            key = f"answer to {rival} {scenario}"
            if "measured_tps" not in found or (key, 0) in self.done or self.late():
                continue
            costs = cost_table(config, setting.space, self.target, scenario)
            asked = Limits(tokens_per_second_per_gpu=found["measured_tps"] * (1 + _MARGIN))
            workload = Workload.on_device(costs, asked)
            try:
                answer = solve(formulate(config, setting.space, table, [workload]))
            except InfeasibleError as error:
                self._keep(key, 0, {"skipped": error.message})
                continue
            entry = self._scenario(self._decoder(answer.spec), scenario)
            rivals = sum(
                table.block_damage(
                    layer, block.attention, _SCORED_AS.get(block.ffn, block.ffn), config, {"kl": 1}
                )
                for layer, block in enumerate(setting.specs[rival].blocks)
            )
            self._keep(
                key,
                0,
                entry
                | {"status": answer.status, "damage": answer.score, "rival_damage": rivals}
                | {"rival_measured_tps": found["measured_tps"]},
            )


def medians(entries: list[Entry]) -> dict[str, Entry]:
    """Entries by key: of every figure the median over turns, and how far speed moved between."""
    by_key: dict[str, list[Entry]] = {}
    for entry in entries:
        by_key.setdefault(entry["key"], []).append(entry)
    found = {}
    for key, turns in by_key.items():
        measured = [entry for entry in turns if "skipped" not in entry] or turns
        found[key] = {
            name: statistics.median(entry[name] for entry in measured)
            if isinstance(value, float)
            else value
            for name, value in measured[-1].items()
        }
        speeds = [entry["measured_tps"] for entry in measured if "measured_tps" in entry]
        if len(speeds) > 1:
            found[key]["spread"] = (max(speeds) - min(speeds)) / statistics.median(speeds)
    return found
