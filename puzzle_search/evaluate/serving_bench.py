"""Models served side by side: at one batch size, under the most load, over many batch sizes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from puzzle_search.cost import Scenario
from puzzle_search.errors import InputError
from puzzle_search.evaluate.batch_choice import BatchChoice, choose_batch, serving_bytes
from puzzle_search.evaluate.figures import ServingFigures
from puzzle_search.evaluate.max_load import measure_max_load
from puzzle_search.evaluate.served_model import ServedModel, free_memory
from puzzle_search.evaluate.throughput import measure_throughput, open_engine
from puzzle_search.progress import Progress
from puzzle_search.runtime import Engine, Precision, ServingDecoder

T = TypeVar("T")
_Measure = Callable[[Sequence[ServedModel], Sequence[ServingDecoder]], list[T]]

_WAVES = 3  # requests to each slot under the most load
# Models whose batches are still to be chosen share the memory if their weights leave most of it.
_WEIGHT_SHARE = 0.25


@dataclass(frozen=True, kw_only=True)
class Benched:
    """Figures of one model.

    Attributes:
        choice: its batch size, and why.
        in_turn: whether its runs alternated with those of the other models.
    """

    model: ServedModel
    figures: ServingFigures
    choice: BatchChoice
    in_turn: bool

    def as_dict(self) -> dict[str, Any]:
        """The figures with where they come from."""
        return self.figures.as_dict() | {
            "weights": self.model.weights,
            "in_turn": self.in_turn,
            "batch_choice": self.choice.as_dict(),
        }


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """Figures of every model at every batch size, and where memory ended it."""

    points: tuple[Benched, ...]
    ended: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class ServingBench:
    """Models, a scenario and a device to measure them on.

    Models that fit into memory together run in turn, so that drift of the machine falls on all
    alike; others one after the other.

    Attributes:
        models: what to measure.
        scenario: prompt and output length.
        precision: number types.
        device: where.
        memory_limit_bytes: what weights, KV caches and activations may take.
        clock: seconds now, once all work submitted to the device has ended.
    """

    models: tuple[ServedModel, ...]
    scenario: Scenario
    precision: Precision
    device: torch.device
    memory_limit_bytes: int
    clock: Callable[[], float]

    def batches(
        self,
        *,
        batch: int | None,
        iterations: int,
        most_iterations: int | None = None,
        warm_up: int,
    ) -> list[Benched]:
        """Run batches from prompt to last token; a batch of None is chosen for each model.

        Models that are measured in turn are run again, while they spread by more than they differ.

        Raises:
            InputError: memory does not suffice, or the scenario exceeds a model's context.
        """
        together = self._fit_together(batch)

        def measure(
            models: Sequence[ServedModel], decoders: Sequence[ServingDecoder]
        ) -> list[Benched]:
            choices = [self._choose(decoder, batch, len(models)) for decoder in decoders]
            engines = self._engines(decoders, choices)
            figures = measure_throughput(
                engines,
                self.scenario,
                iterations=iterations,
                most_iterations=most_iterations,
                warm_up=warm_up,
                clock=self.clock,
            )
            return [
                Benched(model=model, figures=entry, choice=choice, in_turn=together)
                for model, entry, choice in zip(models, figures, choices, strict=True)
            ]

        return self._for_each_group(measure, together)

    def max_load(self, *, batch: int | None, requests: int | None) -> list[Benched]:
        """Serve requests by continuous batching, one model after the other.

        Args:
            batch: sequences at a time; chosen for each model if None.
            requests: how many; three to each slot if None.

        Raises:
            InputError: memory does not suffice, or the scenario exceeds a model's context.
        """

        def measure(
            models: Sequence[ServedModel], decoders: Sequence[ServingDecoder]
        ) -> list[Benched]:
            [model], [decoder] = models, decoders
            choice = self._choose(decoder, batch, 1)
            [engine] = self._engines([decoder], [choice])
            figures = measure_max_load(
                engine,
                self.scenario,
                requests=requests or _WAVES * engine.slots,
                clock=self.clock,
            )
            return [Benched(model=model, figures=figures, choice=choice, in_turn=False)]

        return self._for_each_group(measure, together=False)

    def sweep(self, *, max_batch: int, iterations: int, warm_up: int) -> Sweep:
        """Run batches of 1, 2, 4 and so on, each model as far as its memory goes.

        Raises:
            InputError: the scenario exceeds a model's context.
        """
        together = self._fit_together(max_batch)
        ended: list[str] = []

        def measure(
            models: Sequence[ServedModel], decoders: Sequence[ServingDecoder]
        ) -> list[Benched]:
            found: list[Benched] = []
            for batch in _doublings(max_batch):
                choice = BatchChoice(batch=batch)
                try:
                    figures = measure_throughput(
                        self._engines(decoders, [choice] * len(decoders)),
                        self.scenario,
                        iterations=iterations,
                        warm_up=warm_up,
                        clock=self.clock,
                        progress=Progress(f"batch {batch}"),
                    )
                except torch.OutOfMemoryError:
                    names = ", ".join(model.name for model in models)
                    ended.append(f"{names}: no batch of {batch}, out of memory")
                    break
                found += [
                    Benched(model=model, figures=entry, choice=choice, in_turn=together)
                    for model, entry in zip(models, figures, strict=True)
                ]
                free_memory()
            return found

        points = self._for_each_group(measure, together)
        return Sweep(points=tuple(points), ended=tuple(ended))

    def _bytes(self, model: ServedModel, batch: int) -> int:
        return serving_bytes(model.config, model.spec, self.precision.dtype, self.scenario, batch)

    def _fit_together(self, batch: int | None) -> bool:
        taken = sum(self._bytes(model, batch or 1) for model in self.models)
        share = _WEIGHT_SHARE if batch is None else 1
        return taken <= share * self.memory_limit_bytes

    def _choose(self, decoder: ServingDecoder, batch: int | None, models: int) -> BatchChoice:
        """The batch size that was asked for, or one chosen in an equal share of the memory."""
        if batch is not None:
            return BatchChoice(batch=batch)
        return choose_batch(
            decoder,
            self.scenario,
            memory_limit_bytes=self.memory_limit_bytes // models,
            clock=self.clock,
        )

    def _engines(
        self, decoders: Sequence[ServingDecoder], choices: Sequence[BatchChoice]
    ) -> list[Engine]:
        return [
            open_engine(decoder, self.scenario, choice.batch)
            for decoder, choice in zip(decoders, choices, strict=True)
        ]

    def _for_each_group(self, measure: _Measure[T], together: bool) -> list[T]:
        """Load and measure all models at once, or one after the other."""
        groups = [self.models] if together else [(model,) for model in self.models]
        found: list[T] = []
        for group in groups:
            decoders = [model.load(self.precision, self.device) for model in group]
            try:
                found += measure(group, decoders)
            except torch.OutOfMemoryError as error:
                raise InputError(
                    f"{self.device} ran out of memory with {', '.join(m.name for m in group)}",
                    remedy="ask for a smaller --batch-size, or for auto",
                ) from error
            del decoders
            free_memory()
        return found


def _doublings(largest: int) -> Iterator[int]:
    batch = 1
    while batch <= largest:
        yield batch
        batch *= 2
