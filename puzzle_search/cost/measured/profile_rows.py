"""The rows of a profile's tables, read strictly."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Self

from pydantic import model_validator

from puzzle_search.arch import NoOp, parse_variant
from puzzle_search.cost.latency import Phase
from puzzle_search.files import Count, Flag, Line, Positive, Row, Size

Part = Literal["attention", "ffn", "outside"]
EMBEDDING, HEAD, STEP = "embedding", "head", "step"
OUTSIDE = (EMBEDDING, HEAD, STEP)
"""What is measured outside the blocks, in the place of a variant."""


@dataclass(frozen=True, kw_only=True)
class _Measured(Row):
    """A subblock of a parent, or what is outside of them.

    Attributes:
        subblock: attention, ffn or outside.
        variant: what was measured; outside the blocks ``embedding``, ``head`` (final norm, output
            head and greedy sampling) or ``step`` (what a step of the engine costs besides).
    """

    subblock: Part
    variant: str

    @model_validator(mode="after")
    def _can_be_measured(self) -> Self:
        if self.subblock == "outside":
            if self.variant not in OUTSIDE:
                raise ValueError(f"variant is {self.variant!r}, but none of {', '.join(OUTSIDE)}")
        elif isinstance(parse_variant(self.subblock, self.variant), NoOp):
            raise ValueError(f"variant is {self.variant!r}, which takes no time")
        return self


@dataclass(frozen=True, kw_only=True)
class LatencyRow(_Measured):
    """One measured point: a step of ``tokens`` new tokens per sequence over ``context``.

    Attributes:
        phase: prefill or decode.
        batch: sequences.
        tokens: new tokens of each sequence, 1 in decode.
        context: tokens that each sequence attends to at the end, the new ones among them.
        tp: tensor-parallel degree whose local shapes were measured, without all-reduce.
        latency_us: median.
        latency_us_p10: 10th percentile.
        latency_us_p90: 90th percentile.
        repeats: how often it was run.
        steady: whether (p90 - p10) / median stayed within the profiler's limit.
        group: row group that it was measured in.
    """

    phase: Phase
    batch: Size
    tokens: Size
    context: Size
    tp: Size
    latency_us: Positive
    latency_us_p10: Positive
    latency_us_p90: Positive
    repeats: Size
    steady: Flag
    group: Count

    @model_validator(mode="after")
    def _is_a_step(self) -> Self:
        if self.context < self.tokens:
            raise ValueError(f"context is {self.context}, less than the {self.tokens} new tokens")
        if self.phase == "decode" and self.tokens != 1:
            raise ValueError(f"tokens is {self.tokens}, but 1 in decode")
        if self.phase == "prefill" and self.context > self.tokens and self.batch != 1:
            raise ValueError(
                f"batch is {self.batch}, but 1 where a prompt that is cut into chunks has a context"
            )
        return self


@dataclass(frozen=True, kw_only=True)
class MemoryRow(_Measured):
    """Bytes of one variant on one device, as its allocator has them.

    ``workspace_bytes`` is what a step of ``workspace_rows`` tokens took beside weights, cache and
    inputs.
    """

    tp: Size
    weight_bytes: Count
    kv_bytes_per_token: Count
    workspace_bytes: Count
    workspace_rows: Count


@dataclass(frozen=True, kw_only=True)
class GroupRow(Row):
    """State of the device while a group of rows was measured in turn.

    None where the device does not tell.

    Attributes:
        group: number that the rows name.
        seconds: time that the group took.
        sm_clock_mhz: clock of the processors.
        memory_clock_mhz: clock of the memory.
        temperature_c: of the chip.
        power_watts: drawn.
        throttle: reasons for a lowered clock, joined by ``+``; empty for none.
        other_processes: processes on the device besides the profiler.
    """

    group: Count
    seconds: Positive
    sm_clock_mhz: Count | None = None
    memory_clock_mhz: Count | None = None
    temperature_c: Count | None = None
    power_watts: Positive | None = None
    throttle: Line
    other_processes: Count | None = None
