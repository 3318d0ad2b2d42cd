"""What is measured, one class each: blocks' subblocks, and what stands outside the blocks.

Each is a stack of distinct copies that take turns, so that weights come from where they come from
in a whole model, and not from a cache that holds one block.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from puzzle_search.arch import ArchitectureSpec, Gqa, ParentConfig, Variant
from puzzle_search.cost.measured.profile_rows import EMBEDDING, HEAD, STEP
from puzzle_search.profile.hardware.memory import check_allocation, peak_bytes, storage_bytes
from puzzle_search.profile.points.point import Point
from puzzle_search.profile.points.step_inputs import Heads, StepInputs
from puzzle_search.profile.sampling.timing import TimedRun, Work, prepare_run, wall_clock
from puzzle_search.runtime import (
    Engine,
    ServingDecoder,
    ServingSubblock,
    calibrating,
    make_serving_subblock,
)
from puzzle_search.runtime.cache import LayerSlots
from puzzle_search.runtime.subblocks import local_heads

_CALIBRATION_TOKENS = 64
_STEP_SLOT_TOKENS = 16  # of the slots in which the bare engine decodes


@dataclasses.dataclass(frozen=True, kw_only=True)
class Allocated:
    """Bytes on the device.

    Attributes:
        weight_bytes: of one copy, without the scales of FP8.
        kv_bytes_per_token: keys and values of one token.
        workspace_bytes: most that a pass took besides, without its inputs.
    """

    weight_bytes: int
    kv_bytes_per_token: int
    workspace_bytes: int


class Subject(ABC):
    """Something that is measured at many points.

    Attributes:
        name: of the first of all that are the same to measure.
        key: the same for all of them.
        copies: distinct copies, each with weights of its own.
        weight_bytes: of all copies.
    """

    name: str
    key: str
    copies: int
    weight_bytes: int

    def __init__(self, inputs: StepInputs) -> None:
        self._inputs = inputs
        self._device = inputs.device.torch_device

    @abstractmethod
    def open(self) -> None:
        """Make the weights."""

    @abstractmethod
    def close(self) -> None:
        """Give their memory back."""

    def kv_numbers(self, point: Point) -> int:
        """Keys and values that its copies take at a point, in numbers."""
        return 0

    @abstractmethod
    def run(self, part: str, point: Point, pool: Any) -> TimedRun:
        """One pass of a part of it, warmed up and ready to be timed.

        Args:
            part: of the subject.
            point: the step that it is a part of.
            pool: memory that captured passes share.
        """

    @abstractmethod
    def allocated(self, part: str, point: Point) -> Allocated:
        """Bytes of one copy of a part, and of a pass."""


class SubblockStack(Subject):
    """Copies of one variant's subblock, or of one device's share of it.

    Attributes:
        caches: how many of them have keys and values of their own: as many as the parent has
            layers. Further ones share these in turn.

    Raises:
        InputError: the variant's sizes cannot be multiplied in the precision.
    """

    def __init__(self, inputs: StepInputs, variant: Variant, tp: int) -> None:
        super().__init__(inputs)
        self._variant, self._tp = variant, tp
        self.name = f"{variant}, tp {tp}"
        self._heads: Heads | None = None
        if isinstance(variant, Gqa):
            query, kv = local_heads(variant, inputs.config, tp)
            self._heads = Heads(query=query, kv=kv, window=variant.window(inputs.config))
        shapes = dict(self._make(torch.device("meta")).named_parameters())
        sizes = ", ".join(f"{name} {list(shape.shape)}" for name, shape in shapes.items())
        window = "" if self._heads is None else f", window {self._heads.window}"
        self.key = f"{variant.kind}: {sizes}{window}"
        copy_bytes = sum(shape.nbytes for shape in shapes.values())
        self.copies = max(2, math.ceil(inputs.cooling_bytes / copy_bytes))
        self.caches = min(self.copies, inputs.config.num_layers)
        self.weight_bytes = self.copies * copy_bytes
        self._modules = nn.ModuleList()

    def open(self) -> None:
        """See `Subject`."""
        for _ in range(self.copies):
            module = check_allocation(lambda: self._make(self._device), self._device)
            module.randomise()
            self._modules.append(module)
        tokens = min(_CALIBRATION_TOKENS, self._inputs.config.max_context)
        point = Point(phase="prefill", batch=1, tokens=tokens, context=tokens)
        with calibrating(self._modules):
            for work in self._works(point):
                work()

    def close(self) -> None:
        """See `Subject`."""
        self._modules = nn.ModuleList()

    def kv_numbers(self, point: Point) -> int:
        """See `Subject`."""
        if self._heads is None:
            return 0
        tokens = point.batch * self._heads.kept_tokens(point.context)
        return 2 * self.caches * tokens * self._heads.kv * self._inputs.config.head_dim

    def run(self, part: str, point: Point, pool: Any) -> TimedRun:
        """Norm, residual add, matrices and attention; see `Subject`."""
        return prepare_run(
            self._works(point), device=self._device, captured=point.phase == "decode", pool=pool
        )

    def allocated(self, part: str, point: Point) -> Allocated:
        """See `Subject`."""
        kv_bytes = 0
        if self._heads is not None:
            slots = LayerSlots(
                self._heads.kv,
                self._inputs.config.head_dim,
                slots=1,
                max_length=1,
                dtype=self._inputs.precision.kv,
                device=self._device,
            )
            kv_bytes = storage_bytes((slots.keys_BSKE, slots.values_BSKE))
        return Allocated(
            weight_bytes=storage_bytes(self._modules[0].parameters()),
            kv_bytes_per_token=kv_bytes,
            workspace_bytes=peak_bytes(self._works(point)[0], self._device),
        )

    def _works(self, point: Point) -> list[Work]:
        """A pass of each copy."""
        residual_ND, delta_ND = self._inputs.rows(point.rows)
        step = self._inputs.step(point, self._heads)
        caches: Sequence[LayerSlots | None] = [None]
        if self._heads is not None:
            caches = self._inputs.slots(point, self._heads, copies=self.caches)
        return [
            functools.partial(module, residual_ND, delta_ND, step, cache)
            for module, cache in zip(self._modules, itertools.cycle(caches), strict=False)
        ]

    def _make(self, device: torch.device) -> ServingSubblock:
        inputs = self._inputs
        with device:
            module = make_serving_subblock(
                self._variant, inputs.config, inputs.precision, tp=self._tp
            )
        assert module is not None, "no-ops cost nothing"
        return module


class OutsideStack(Subject):
    """Decoders whose blocks are all no-ops: embedding, head, and an engine's bare step.

    With ``tp`` above 1 the tables have one device's share of the vocabulary.
    """

    def __init__(self, inputs: StepInputs, tp: int) -> None:
        super().__init__(inputs)
        self.name = f"outside, tp {tp}"
        vocabulary = math.ceil(inputs.config.vocab_size / tp)
        self._config = dataclasses.replace(inputs.config, vocab_size=vocabulary)
        self.key = f"outside: vocabulary {vocabulary}"
        with torch.device("meta"):
            shape = ServingDecoder(self._config, _no_ops(self._config), inputs.precision)
        copy_bytes = sum(parameter.nbytes for parameter in shape.parameters())
        self.copies = max(1, math.ceil(inputs.cooling_bytes / copy_bytes))
        self.weight_bytes = self.copies * copy_bytes
        self._decoders: list[ServingDecoder] = []

    def open(self) -> None:
        """See `Subject`."""
        spec, precision = _no_ops(self._config), self._inputs.precision
        for _ in range(self.copies):
            decoder = ServingDecoder.random(self._config, spec, precision, self._device)
            self._decoders.append(decoder)

    def close(self) -> None:
        """See `Subject`."""
        self._decoders = []

    def run(self, part: str, point: Point, pool: Any) -> TimedRun:
        """Embedding, head, or a whole step of the bare engine; see `Subject`."""
        if part == STEP:
            run = TimedRun(
                submit=self._step(point), stopwatch=wall_clock, copies=1, before=self._inputs.cool
            )
            run.submit()
            run.choose_passes()
            return run
        return prepare_run(
            self._works(part, point),
            device=self._device,
            captured=point.phase == "decode",
            pool=pool,
        )

    def allocated(self, part: str, point: Point) -> Allocated:
        """See `Subject`."""
        decoder = self._decoders[0]
        weights = [decoder.embedding]
        if part == HEAD:
            own = [] if decoder.head is decoder.embedding else [decoder.head]
            weights = [decoder.norm_weight, *own]
        return Allocated(
            weight_bytes=storage_bytes(weights),
            kv_bytes_per_token=0,
            workspace_bytes=peak_bytes(self._works(part, point)[0], self._device),
        )

    def _works(self, part: str, point: Point) -> list[Work]:
        """A pass of each copy."""
        residual_ND, delta_ND = self._inputs.rows(point.rows)
        ids_N = self._ids(point.rows)

        def work(decoder: ServingDecoder) -> Iterable[torch.Tensor]:
            if part == EMBEDDING:
                return (F.embedding(ids_N, decoder.embedding),)
            return (decoder.logits(residual_ND, delta_ND).argmax(-1),)

        return [functools.partial(work, decoder) for decoder in self._decoders]

    def _step(self, point: Point) -> Callable[[], object]:
        decoder = self._decoders[0]
        if point.phase == "decode":
            length = min(_STEP_SLOT_TOKENS, self._config.max_context)
            engine = Engine(decoder, slots=point.batch, max_length=length)
            return lambda: engine.decode().tolist()
        engine = Engine(decoder, slots=point.batch, max_length=point.tokens + 1)
        ids_BL = self._ids(point.rows).view(point.batch, point.tokens)
        return lambda: engine.prefill(range(point.batch), ids_BL).tolist()

    def _ids(self, count: int) -> torch.Tensor:
        return torch.randint(self._config.vocab_size, (count,), device=self._device)


def _no_ops(config: ParentConfig) -> ArchitectureSpec:
    return ArchitectureSpec.of(config.name, [("no_op", "no_op")] * config.num_layers)
