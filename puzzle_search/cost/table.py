"""The cost of every variant at every operating point, as arrays that the solver adds up.

Time and memory of an architecture are sums over its subblocks plus a part outside the blocks
(design, section 5), so that a table over variants prices every architecture.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from puzzle_search.arch import (
    ArchitectureSpec,
)
from puzzle_search.cost.scenario import Scenario
from puzzle_search.cost.target import Target

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class OperatingPoint:
    """A batch size and a tensor-parallel degree."""

    batch: int
    tp: int


@dataclass(frozen=True, kw_only=True)
class ScenarioCost:
    """Predicted cost of one architecture in one scenario at one operating point.

    Attributes:
        scenario: lengths of the requests.
        gpu: name of the device.
        point: batch size and TP degree.
        in_flight: requests that are served or wait; the batch, unless more were asked.
        tokens_per_second_per_gpu: output tokens.
        ttft_ms: until the first token of a request, of a static batch until that of all.
        tpot_ms: mean time from a token of a request to its next.
        weights_and_kv_bytes: on each device.
        memory_bytes: with activations, on each device.
        memory_limit_bytes: of each device.
    """

    scenario: Scenario
    gpu: str
    point: OperatingPoint
    in_flight: float
    tokens_per_second_per_gpu: float
    ttft_ms: float
    tpot_ms: float
    weights_and_kv_bytes: int
    memory_bytes: int
    memory_limit_bytes: int

    @property
    def latency_ms(self) -> float:
        """From the arrival of a request, or static batch, to its last token."""
        return self.ttft_ms + self.tpot_ms * self.scenario.decode_steps

    @property
    def requests_per_second(self) -> float:
        """Requests that one replica, of all its devices, finishes."""
        return self.in_flight / self.latency_ms * 1e3

    @property
    def tokens_per_second_per_user(self) -> float:
        """Output tokens of one sequence while it decodes."""
        return 1e3 / self.tpot_ms if self.tpot_ms else math.inf

    def as_dict(self) -> dict[str, Any]:
        """The cost as it is written in results."""
        return {
            "input_len": self.scenario.input_len,
            "output_len": self.scenario.output_len,
            "gpu": self.gpu,
            "tp": self.point.tp,
            "batch": self.point.batch,
            "in_flight": self.in_flight,
            "tokens_per_second_per_gpu": round(self.tokens_per_second_per_gpu, 3),
            "tokens_per_second_per_user": round(1e3 / self.tpot_ms, 3) if self.tpot_ms else None,
            "ttft_ms": round(self.ttft_ms, 4),
            "tpot_ms": round(self.tpot_ms, 5),
            "memory_bytes": self.memory_bytes,
            "memory_limit_bytes": self.memory_limit_bytes,
        }


@dataclass(frozen=True, kw_only=True)
class SubblockCosts:
    """Costs of the variants of one subblock; arrays are (points, variants).

    ``prefill_us`` is the time until a request's first token, ``decode_us`` from there to its last.
    """

    variants: tuple[str, ...]
    prefill_us: Floats
    decode_us: Floats
    memory_bytes: Floats

    @classmethod
    def of(cls, names: Sequence[str], arrays: Sequence[Floats]) -> SubblockCosts:
        """Of these variants: time to the first token, from there to the last, and memory."""
        prefill_us, decode_us, memory_bytes = arrays
        return cls(
            variants=tuple(names),
            prefill_us=prefill_us,
            decode_us=decode_us,
            memory_bytes=memory_bytes,
        )

    @property
    def total_us(self) -> Floats:
        """Until the last token."""
        return self.prefill_us + self.decode_us

    def columns(self, names: Sequence[str]) -> NDArray[np.intp]:
        """Column of each named variant."""
        position = {name: index for index, name in enumerate(self.variants)}
        return np.array([position[name] for name in names])

    def counts(self, names: Sequence[str]) -> NDArray[np.intp]:
        """How often each variant is named."""
        return np.bincount(self.columns(names), minlength=len(self.variants))


@dataclass(frozen=True, kw_only=True)
class CostTable:
    """Costs in one scenario on one target.

    ``outside_*``, ``activation_bytes`` and ``in_flight``, the requests that are served or wait, are
    (points,).
    """

    scenario: Scenario
    target: Target
    points: tuple[OperatingPoint, ...]
    in_flight: Floats
    attention: SubblockCosts
    ffn: SubblockCosts
    outside_prefill_us: Floats
    outside_decode_us: Floats
    outside_weight_bytes: Floats
    activation_bytes: Floats

    @property
    def outside_memory_bytes(self) -> Floats:
        """Memory outside the blocks: embedding, head, and the largest live activations."""
        return self.outside_weight_bytes + self.activation_bytes

    @property
    def outside_us(self) -> Floats:
        """Time outside the blocks until the last token."""
        return self.outside_prefill_us + self.outside_decode_us

    def joined(self, other: CostTable) -> CostTable:
        """With the points of another table of the same variants after its own."""

        def both(name: str) -> Floats:
            return np.concatenate([getattr(self, name), getattr(other, name)])

        def subblock(own: SubblockCosts, more: SubblockCosts) -> SubblockCosts:
            assert own.variants == more.variants
            arrays = [
                np.concatenate([getattr(part, name) for part in (own, more)])
                for name in ("prefill_us", "decode_us", "memory_bytes")
            ]
            return SubblockCosts.of(own.variants, arrays)

        return replace(
            self,
            points=self.points + other.points,
            in_flight=both("in_flight"),
            attention=subblock(self.attention, other.attention),
            ffn=subblock(self.ffn, other.ffn),
            outside_prefill_us=both("outside_prefill_us"),
            outside_decode_us=both("outside_decode_us"),
            outside_weight_bytes=both("outside_weight_bytes"),
            activation_bytes=both("activation_bytes"),
        )

    def of(self, spec: ArchitectureSpec) -> SpecCosts:
        """Costs of an architecture at every operating point."""
        # By counts, so that the order of the blocks does not change the last digit.
        attention = self.attention.counts([block.attention for block in spec.blocks])
        ffn = self.ffn.counts([block.ffn for block in spec.blocks])
        prefill_us, decode_us, kept_bytes = (
            outside + getattr(self.attention, name) @ attention + getattr(self.ffn, name) @ ffn
            for name, outside in (
                ("prefill_us", self.outside_prefill_us),
                ("decode_us", self.outside_decode_us),
                ("memory_bytes", self.outside_weight_bytes),
            )
        )
        return SpecCosts(
            table=self, prefill_us=prefill_us, decode_us=decode_us, kept_bytes=kept_bytes
        )

    def cost(self, spec: ArchitectureSpec, index: int) -> ScenarioCost:
        """Cost of an architecture at one operating point."""
        return self.of(spec).at(index)

    def best_cost(self, spec: ArchitectureSpec) -> ScenarioCost | None:
        """Cost at the operating point of highest throughput that fits in memory, if any fits."""
        return self.of(spec).best()


@dataclass(frozen=True, kw_only=True)
class SpecCosts:
    """Costs of one architecture at the operating points of a table; arrays are (points,).

    What has the name of a field or property of `ScenarioCost` is that, at every point.
    """

    table: CostTable
    prefill_us: Floats
    decode_us: Floats
    kept_bytes: Floats

    @property
    def tokens_per_second_per_gpu(self) -> Floats:
        """Output tokens."""
        tp = np.array([point.tp for point in self.table.points])
        tokens = self.table.in_flight * self.table.scenario.output_len / tp
        return np.asarray(tokens * 1e6 / (self.prefill_us + self.decode_us))

    @property
    def ttft_ms(self) -> Floats:
        """Until the first token."""
        return self.prefill_us / 1e3

    @property
    def tpot_ms(self) -> Floats:
        """From a token to the next."""
        return self.decode_us / max(1, self.table.scenario.decode_steps) / 1e3

    @property
    def latency_ms(self) -> Floats:
        """Until the last token."""
        return self.ttft_ms + self.tpot_ms * self.table.scenario.decode_steps

    @property
    def requests_per_second(self) -> Floats:
        """Requests that one replica finishes."""
        return np.asarray(self.table.in_flight / self.latency_ms * 1e3)

    @property
    def tokens_per_second_per_user(self) -> Floats:
        """Output tokens of one sequence while it decodes; infinite where it gives only one."""
        with np.errstate(divide="ignore"):
            return 1e3 / self.tpot_ms

    @property
    def memory_bytes(self) -> Floats:
        """On each device."""
        return np.ceil(self.kept_bytes + self.table.activation_bytes)

    @property
    def fits(self) -> NDArray[np.bool_]:
        """Whether the device has that much memory."""
        return np.asarray(self.memory_bytes <= self.table.target.memory_limit_bytes)

    def at(self, index: int) -> ScenarioCost:
        """The costs at one point."""
        return ScenarioCost(
            scenario=self.table.scenario,
            gpu=self.table.target.gpu,
            point=self.table.points[index],
            in_flight=float(self.table.in_flight[index]),
            tokens_per_second_per_gpu=float(self.tokens_per_second_per_gpu[index]),
            ttft_ms=float(self.ttft_ms[index]),
            tpot_ms=float(self.tpot_ms[index]),
            weights_and_kv_bytes=int(np.ceil(self.kept_bytes[index])),
            memory_bytes=int(self.memory_bytes[index]),
            memory_limit_bytes=self.table.target.memory_limit_bytes,
        )

    def best(self) -> ScenarioCost | None:
        """At the point of highest throughput that fits in memory, if any fits."""
        index = self.fastest(self.fits)
        return None if index is None else self.at(index)

    def fastest(self, allowed: NDArray[np.bool_]) -> int | None:
        """The point of highest throughput among those allowed, if any is."""
        if not allowed.any():
            return None
        return int(np.argmax(np.where(allowed, self.tokens_per_second_per_gpu, -1.0)))
