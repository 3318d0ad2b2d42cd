"""Stages of the GPU check that run models."""

from __future__ import annotations

import statistics
import time

import torch
from gpu_prediction import Entry, Prediction, figures
from gpu_setting import PARENT, Setting

from puzzle_search.arch import ArchitectureSpec
from puzzle_search.cost import Scenario
from puzzle_search.errors import InfeasibleError
from puzzle_search.evaluate.sampled import SampledThroughput, sample_throughput, step_seconds
from puzzle_search.evaluate.served_model import free_memory
from puzzle_search.files import Journal
from puzzle_search.profile import Device
from puzzle_search.runtime import Engine, ServingDecoder, precision_on
from puzzle_search.solve import Limits, ScoreTable, Solution, Workload, formulate, solve
from puzzle_search.solve.question.targets import cost_table

# The solver's answer shall be no slower than its rival: it is asked for a little more.
_MARGIN = 0.02
# A variant that the search space lacks is scored as the next wider one that it has, which favours
# the child that has it: Nemotron-49B's one FFN of width 17,920.
_SCORED_AS = {"mlp_17920": "mlp_21504"}


class Bench:
    """Runs models on one device and keeps what it finds, entry by entry.

    Args:
        setting: what to run.
        device: to run on.
        prediction: chooses batch sizes where none was run yet, and is what the solver solves by.
        journal: of entries; those that are in it are not measured again.
        deadline: by `time.monotonic`; no measurement is begun after it.
    """

    def __init__(
        self,
        setting: Setting,
        device: Device,
        prediction: Prediction,
        journal: Journal,
        deadline: float,
    ) -> None:
        self.setting = setting
        self.device = device
        self.prediction = prediction
        self.precision = precision_on(setting.dtype, device.torch_device)
        self.journal, self.deadline = journal, deadline
        entries = journal.read()
        self.done = {(entry["key"], entry["turn"]) for entry in entries}
        self.batches = {entry["key"]: entry["batch"] for entry in entries if "batch" in entry}

    def has_work(self, turn: int) -> bool:
        """Whether something of a turn is to be measured, and there is time."""
        return not self.late() and any(self._wanted(name, turn) for name in self.setting.specs)

    def all_models(self, turn: int) -> None:
        """Steps and scenarios of every model, as far as time allows."""
        for name in self.setting.specs:
            self._one_model(name, turn)

    def _wanted(self, name: str, turn: int) -> list[tuple[str, int | Scenario]]:
        """What of one model is not in the journal yet for this turn."""
        scenarios = self.setting.lengths if name == PARENT else self.setting.scenarios
        every: list[tuple[str, int | Scenario]] = [
            *((f"{name} {scenario}", scenario) for scenario in scenarios),
            *((f"{name} step {batch}", batch) for batch in self.setting.floor_batches),
        ]
        return [(key, what) for key, what in every if (key, turn) not in self.done]

    def _one_model(self, name: str, turn: int) -> None:
        wanted = self._wanted(name, turn)
        if not wanted or self.late():
            return
        decoder = self._decoder(self.setting.specs[name])
        for key, what in wanted:
            if self.late():
                return
            if isinstance(what, int):
                found = self._step(decoder, what)
            else:
                found = self._scenario(decoder, what, key)
            self._keep(key, turn, {"model": name, **found})

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
        if "batch" in found:
            self.batches[key] = found["batch"]
        print(
            key, {name: found[name] for name in found if name.endswith(("_ms", "tps"))}, flush=True
        )

    def _scenario(self, decoder: ServingDecoder, scenario: Scenario, key: str) -> Entry:
        """One batch: as large as before, at first the size that is predicted to be best."""
        batch = self.batches.get(key)
        if batch is None:
            best = self.prediction.best(decoder.spec, scenario)
            if best is None:
                return {"skipped": "no batch fits in memory"}
            batch = best.point.batch
        asked = batch
        while (found := self._try_sample(decoder, scenario, batch)) is None:
            batch = batch * 9 // 10
            if not batch:
                return {"skipped": "out of memory at batch 1"}
        return {
            "scenario": str(scenario),
            "batch": batch,
            "batch_asked": asked,
            "measured_tps": found.tokens_per_second,
            "measured_ttft_ms": found.ttft_ms,
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
                contexts=self.setting.contexts,
                repeats=self.setting.repeats,
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
        """One decode step."""
        context = self.setting.floor_context
        try:
            engine = self._engine(decoder, batch, context + 1)
            engine.cache.randomise()
            seconds = step_seconds(engine, context - 1, self.device.clock, 4 * self.setting.repeats)
        except torch.OutOfMemoryError:
            return {"skipped": "out of memory"}
        return {"batch": batch, "measured_ms": seconds * 1e3}

    def headline(self, scores: ScoreTable) -> None:
        """The solver's own answers at the speed of the references, each beside its rival.

        The speed of a rival is the one that is predicted of it, so that an error of the profile
        that both share does not count.
        """
        scenario = self.setting.scenarios[0]
        answers = {}
        for rival in self.setting.references:
            aim = self.prediction.best(self.setting.specs[rival], scenario)
            if aim is not None:
                speed = aim.tokens_per_second_per_gpu * (1 + _MARGIN)
                answers[rival] = self._answer(scores, speed)
        for turn in range(self.setting.rounds):
            for rival, answer in answers.items():
                key = f"answer to {rival} {scenario}"
                if (key, turn) not in self.done and not self.late():
                    self._keep(key, turn, self._duel(rival, answer, key, scores))

    def _duel(self, rival: str, answer: Solution | str, key: str, scores: ScoreTable) -> Entry:
        """An answer, or why there is none, and its rival, one after the other."""
        if isinstance(answer, str):
            return {"skipped": answer}
        scenario, spec = self.setting.scenarios[0], self.setting.specs[rival]
        of_rival = self._scenario(self._decoder(spec), scenario, f"{rival} {scenario}")
        entry = self._scenario(self._decoder(answer.spec), scenario, key)
        if "skipped" in of_rival or "skipped" in entry:
            return {"skipped": "out of memory"}
        damage = sum(
            scores.block_damage(
                layer,
                block.attention,
                _SCORED_AS.get(block.ffn, block.ffn),
                self.setting.config,
                {"kl": 1},
            )
            for layer, block in enumerate(spec.blocks)
        )
        return (
            entry
            | figures(self.prediction.cost_at(answer.spec, scenario, entry["batch"]))
            | {"status": answer.status, "damage": answer.score, "rival_damage": damage}
            | {"rival_measured_tps": of_rival["measured_tps"]}
        )

    def _answer(self, scores: ScoreTable, tokens_per_second: float) -> Solution | str:
        """The solver's, or why it has none."""
        setting, scenario = self.setting, self.setting.scenarios[0]
        costs = cost_table(setting.config, setting.space, self.prediction.target, scenario)
        workload = Workload.on_device(costs, Limits(tokens_per_second_per_gpu=tokens_per_second))
        try:
            return solve(formulate(setting.config, setting.space, scores, [workload]))
        except InfeasibleError as error:
            return error.message


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
