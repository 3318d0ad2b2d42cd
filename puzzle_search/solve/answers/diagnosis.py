"""What to tell of limits that cannot be kept: what is reachable, and what would be possible."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace

from puzzle_search.errors import InfeasibleError
from puzzle_search.solve.problem.measures import Bound
from puzzle_search.solve.problem.problem import Problem
from puzzle_search.solve.search.search import search
from puzzle_search.solve.search.solution import Solution

_SECONDS_PER_LIMIT = 5.0
_SECONDS_TOGETHER = 20.0
# The common factor by which all limits would have to be looser is sought up to this, to so much.
_LARGEST_FACTOR = 64.0
_FACTOR_PRECISION = 1e-2

# How limits are shown: what people ask for, from the measure that is bounded, and its unit.
RATES = {
    "tokens_per_second_per_gpu": 1e6,
    "tokens_per_second_per_user": 1e3,
    "requests_per_second": 1e6,
}
UNITS = {
    "tokens_per_second_per_gpu": (1.0, "tok/s/GPU"),
    "tokens_per_second_per_user": (1.0, "tok/s/user"),
    "requests_per_second": (1.0, "requests/s"),
    "memory_bytes": (1e-9, "GB"),
    "runtime_us": (1e-3, "ms"),
    "ttft_ms": (1.0, "ms TTFT"),
    "tpot_ms": (1.0, "ms TPOT"),
    "latency_ms": (1.0, "ms latency"),
    "parameters": (1e-9, "B parameters"),
    "kv_bytes_per_token": (1.0, "bytes of KV cache per token"),
    "score": (1.0, "score"),
}


@dataclass(frozen=True, kw_only=True)
class Extreme:
    """How far one limit can be taken while all others hold.

    Attributes:
        bound: the limit.
        reached: its measure at the extreme; None where none was found.
        proven: whether nothing beyond it is possible; false where time ran out.
        where: operating points at the extreme.
    """

    bound: Bound
    reached: float | None
    proven: bool
    where: str

    @property
    def looser_by(self) -> float:
        """The part by which this limit alone would have to be looser; infinite if in vain."""
        if self.reached is None:
            return float("inf")
        return (self.reached - self.bound.at_most) / (abs(self.bound.at_most) or 1.0)


def extremes(problem: Problem) -> list[Extreme]:
    """How far each limit can be taken while all others hold."""
    found, deadline = [], time.perf_counter() + _SECONDS_TOGETHER
    for bound in problem.all_bounds:
        others = replace(problem.without(bound), goal=bound.measure)
        seconds = min(_SECONDS_PER_LIMIT, max(0.0, deadline - time.perf_counter()))
        solution, proven = None, True
        try:
            solution = search(others, max_seconds=seconds)
        except InfeasibleError:  # not within that time
            proven = False
        found.append(
            Extreme(
                bound=bound,
                reached=None if solution is None else solution.objective,
                proven=proven if solution is None else solution.status == "optimal",
                where="" if solution is None else _where(solution),
            )
        )
    return found


def explain_infeasible(problem: Problem) -> InfeasibleError:
    """An error that says how far each limit can be taken, and what would make it possible."""
    found = extremes(problem)
    lines = [f"no architecture of the search space keeps the limits ({_asked(problem)})"]
    for extreme in found:
        if extreme.reached is not None:
            upwards = extreme.bound.limit in RATES or extreme.bound.turned
            side = "at most" if upwards else "at least"
            side = side if extreme.proven else "in the time given"
            lines.append(
                f"with all others kept: {side} "
                f"{show(extreme.bound, extreme.reached, reachable=True)}{extreme.where}"
            )
    possible = [e for e in found if e.reached is not None and not _beyond_device(problem, e)]
    if possible:
        nearest = min(possible, key=lambda extreme: extreme.looser_by)
        assert nearest.reached is not None
        reachable = show(nearest.bound, nearest.reached, reachable=True)
        remedy = f"ask for {reachable}, the smallest change of one limit"
    elif (together := _all_looser(problem)) is not None:
        lines.append("no limit alone is to blame")
        remedy = f"ask for all of: {together}"
    else:
        remedy = "use another device, more batch sizes or TP degrees, or a wider search space"
    return InfeasibleError("\n  ".join(lines), remedy=remedy)


def _beyond_device(problem: Problem, extreme: Extreme) -> bool:
    """Whether an extreme needs more memory than the device has."""
    bound = extreme.bound
    if bound.limit != "memory_bytes" or bound.measure.scenario is None:
        return False
    device = problem.workloads[bound.measure.scenario].table.target.memory_limit_bytes
    return (extreme.reached or 0.0) * (1 + bound.margin) > device


def show(bound: Bound, value: float, *, reachable: bool = False) -> str:
    """A value of a bound's measure as people say it, before any margin.

    A reachable one is rounded to the side that can be kept.
    """
    if bound.limit not in UNITS:
        return f"{-value if bound.turned else value:.6g} in {bound.limit!r}"
    value *= 1 + bound.margin
    if bound.limit in RATES:
        value = RATES[bound.limit] / value
    scale, unit = UNITS[bound.limit]
    shown = value * scale
    if reachable and shown:
        step = 10.0 ** (math.floor(math.log10(abs(shown))) - 4)
        steps = shown / step
        shown = step * (
            math.floor(steps + 1e-6) if bound.limit in RATES else math.ceil(steps - 1e-6)
        )
    where = f" in scenario {bound.measure.scenario + 1}" if bound.measure.scenario else ""
    return f"{shown:.5g} {unit}{where}"


def _asked(problem: Problem) -> str:
    asked = [
        show(bound, bound.at_most) if bound.limit in UNITS else bound.limit
        for bound in problem.all_bounds
    ]
    return "; ".join(dict.fromkeys(asked)) or "none"


def _where(solution: Solution) -> str:
    shown = [
        f"batch {cost.point.batch}, tp {cost.point.tp} in {cost.scenario}"
        for cost in solution.costs
    ]
    return f" ({'; '.join(shown)})" if shown else ""


def _all_looser(problem: Problem) -> str | None:
    """Values of all limits, looser by one factor, that can be kept together."""
    deadline = time.perf_counter() + _SECONDS_TOGETHER

    def possible(factor: float) -> Solution | None:
        try:
            return search(problem.looser(factor), max_seconds=_SECONDS_PER_LIMIT)
        except InfeasibleError:  # not within that time
            return None

    low, high = 1.0, _LARGEST_FACTOR
    if possible(high) is None:
        return None
    while high / low > 1 + _FACTOR_PRECISION and time.perf_counter() < deadline:
        middle = (low * high) ** 0.5
        low, high = (low, middle) if possible(middle) else (middle, high)
    looser = problem.looser(high).all_bounds
    changed = zip(problem.all_bounds, looser, strict=True)
    return "; ".join(
        show(bound, bound.at_most, reachable=True)
        for asked, bound in changed
        if bound.at_most != asked.at_most
    )
