"""What the answer must keep to: in each scenario, and of the child itself."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from puzzle_search.arch import ArchitectureSpec
from puzzle_search.choices import LoadingEngine
from puzzle_search.cost import CostTable, ScenarioCost
from puzzle_search.cost.table import SpecCosts
from puzzle_search.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What serving must reach in one scenario; None is no limit.

    Attributes:
        tokens_per_second_per_gpu: output tokens, at least.
        tokens_per_second_per_user: output tokens of one sequence while it decodes, at least.
        ttft_ms: until a request's first token, of a static batch until that of all, at most.
        tpot_ms: mean time from a token to the next, at most.
        latency_ms: until the last token, at most.
        memory_bytes: on each device, at most.
        requests_per_second: that arrive at one replica, which must keep up with them.
        speedup: tokens/s/GPU as a multiple of the parent's, at its best within the other limits.
    """

    tokens_per_second_per_gpu: float | None = None
    tokens_per_second_per_user: float | None = None
    ttft_ms: float | None = None
    tpot_ms: float | None = None
    latency_ms: float | None = None
    memory_bytes: float | None = None
    requests_per_second: float | None = None
    speedup: float | None = None

    def __post_init__(self) -> None:
        check_positive(vars(self))

    def asked(self) -> dict[str, float]:
        """The limits that are set."""
        return {name: value for name, value in vars(self).items() if value is not None}

    def on_device(self, memory_limit_bytes: int) -> Limits:
        """With the device's memory as a limit."""
        return replace(self, memory_bytes=min(memory_limit_bytes, self.memory_bytes or math.inf))

    def looser(self, factor: float) -> Limits:
        """Every limit further away by a factor; nearer where it is below 1."""

        def times(value: float | None, by: float) -> float | None:
            return None if value is None else value * by

        return Limits(
            tokens_per_second_per_gpu=times(self.tokens_per_second_per_gpu, 1 / factor),
            tokens_per_second_per_user=times(self.tokens_per_second_per_user, 1 / factor),
            ttft_ms=times(self.ttft_ms, factor),
            tpot_ms=times(self.tpot_ms, factor),
            latency_ms=times(self.latency_ms, factor),
            memory_bytes=times(self.memory_bytes, factor),
            requests_per_second=times(self.requests_per_second, 1 / factor),
        )

    def against(self, parent: CostTable, spec: ArchitectureSpec) -> Limits:
        """With a speed-up as the throughput that it means.

        Args:
            parent: prices of the parent's variants, among others.
            spec: the parent.

        Raises:
            InputError: the parent keeps the other limits nowhere, or a throughput is asked too.
        """
        if self.speedup is None:
            return self
        if self.tokens_per_second_per_gpu is not None:
            raise InputError(
                f"scenario {parent.scenario} asks for a throughput and a speed-up",
                remedy="ask for one of them",
            )
        others = replace(self, speedup=None)
        on_device = others.on_device(parent.target.memory_limit_bytes)
        costs = parent.of(spec)
        fastest = costs.fastest(on_device.kept_at(costs))
        if fastest is None:
            raise InputError(
                f"the parent keeps the limits of {parent.scenario} on {parent.target.gpu} nowhere: "
                "there is no speed that a speed-up could refer to",
                remedy="ask for --target-tps, or for more devices with --tp",
            )
        return replace(
            others,
            tokens_per_second_per_gpu=self.speedup * costs.at(fastest).tokens_per_second_per_gpu,
        )

    def kept_by(self, cost: ScenarioCost) -> bool:
        """Whether a predicted cost, as reported, keeps every limit."""
        return bool(self._kept(cost))

    def kept_at(self, costs: SpecCosts) -> NDArray[np.bool_]:
        """At which operating points the costs of an architecture keep every limit."""
        return np.asarray(self._kept(costs))

    def _kept(self, cost: Any) -> Any:
        return (
            (cost.memory_bytes <= (self.memory_bytes or math.inf))
            & (cost.tokens_per_second_per_gpu >= (self.tokens_per_second_per_gpu or 0.0))
            & (cost.tokens_per_second_per_user >= (self.tokens_per_second_per_user or 0.0))
            & (cost.ttft_ms <= (self.ttft_ms or math.inf))
            & (cost.tpot_ms <= (self.tpot_ms or math.inf))
            & (cost.latency_ms <= (self.latency_ms or math.inf))
            & (cost.requests_per_second >= (self.requests_per_second or 0.0))
        )


@dataclass(frozen=True, kw_only=True)
class ChildLimits:
    """What the child itself must keep to; None is no limit.

    Attributes:
        score: summed damage, at most.
        parameters: of the whole child, at most.
        kv_bytes_per_token: over all devices, at most.
        linear: conditions such as ``sum(attention == "no_op") <= 20``
            (`puzzle_search.solve.problem.linear_limit`).
        frozen: layers that stay as they are in the parent.
        portable_to: serving engine that must load the child
            (`puzzle_search.solve.problem.portability`).
    """

    score: float | None = None
    parameters: float | None = None
    kv_bytes_per_token: float | None = None
    linear: tuple[str, ...] = ()
    frozen: frozenset[int] = frozenset()
    portable_to: LoadingEngine | None = None

    def __post_init__(self) -> None:
        numbers = {name: getattr(self, name) for name in ("parameters", "kv_bytes_per_token")}
        check_positive(numbers)
        check_finite("score", self.score)

    def asked(self) -> dict[str, object]:
        """The limits that are set, as results show them."""
        shown = {name: value for name, value in vars(self).items() if value}
        if self.score is not None:
            shown["score"] = self.score
        for name in ("linear", "frozen"):
            if name in shown:
                shown[name] = sorted(shown[name]) if name == "frozen" else list(shown[name])
        return shown


def check_finite(name: str, value: float | None) -> None:
    """Refuse a limit that is no number.

    Raises:
        InputError: it is not finite.
    """
    if value is not None and not math.isfinite(value):
        raise InputError(f"{name} is {value}", remedy="give a finite limit")


def check_positive(values: dict[str, float | None]) -> None:
    """Refuse limits that are not above zero; None is no limit.

    Raises:
        InputError: one is not.
    """
    for name, value in values.items():
        if value is not None and not 0 < value < math.inf:
            raise InputError(
                f"{name} is {value}, not above zero", remedy="give a positive, finite limit"
            )
