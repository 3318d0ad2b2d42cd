"""Ends of a frontier as people type them."""

from __future__ import annotations

from puzzle_search.arch import ArchitectureSpec
from puzzle_search.choices import Axis
from puzzle_search.errors import InputError
from puzzle_search.solve.answers.frontier import End
from puzzle_search.solve.problem.measures import child_measures
from puzzle_search.solve.question.ask import PosedQuestion
from puzzle_search.solve.question.parse import parse_bytes

MEASURES = ("throughput", "speedup", "memory", "latency", "score", "parameters")
_BILLION = 1e9


def parse_end(text: str, asked: PosedQuestion, axis: Axis) -> End:
    """Read ``6000``, a value of the axis, or a value of any measure, such as ``parameters=40``.

    Numbers are in tok/s/GPU, GB, ms, nats of summed damage, billions of parameters; a speed-up is
    against the parent's throughput in the first scenario at its fastest. Memory may have a unit.

    Raises:
        InputError: the measure is not known, the value no number, or the parent does not fit.
    """
    name, told, value = text.rpartition("=")
    name = name.strip() if told else axis
    if name not in MEASURES:
        raise InputError(
            f"{text!r}: {name!r} is no measure of a frontier", remedy=f"use {', '.join(MEASURES)}"
        )
    number = _number(value, text, memory=name == "memory")
    if name == "speedup":
        return End(limit="throughput", value=number * _parent_throughput(asked, 0))
    if name != "parameters":
        return End(limit=name, value=number)
    problem = asked.problem
    table = problem.workloads[0].table
    measures = child_measures(
        asked.inputs.config,
        problem.attention,
        problem.ffn,
        kv_bytes=table.target.dtype.kv_bytes,
        tokens=table.scenario.tokens,
    )
    return End(limit=name, value=number * _BILLION, measure=measures[name])


def _parent_throughput(asked: PosedQuestion, scenario: int) -> float:
    """Output tokens/s per GPU of the parent at its fastest."""
    table = asked.problem.workloads[scenario].table
    cost = table.best_cost(ArchitectureSpec.identity(asked.inputs.config))
    if cost is None:
        raise InputError(
            f"the parent does not fit {table.target.gpu}, so that there is no speed-up over it",
            remedy="ask for throughput, or give more devices with --tp",
        )
    return cost.tokens_per_second_per_gpu


def _number(value: str, text: str, *, memory: bool) -> float:
    try:
        return float(value) * (_BILLION if memory else 1.0)
    except ValueError:
        if memory:
            return parse_bytes(value)
    raise InputError(f"{text!r}: {value!r} is no number", remedy="write for example score=0.5")
