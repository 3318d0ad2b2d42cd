"""A question by the names that options and recipes share: one list, so that both ask the same.

A *wish* is such a name with its value as people write it: ``memory`` is ``60GB``.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from puzzle_search.solve.problem.limits import ChildLimits, Limits
from puzzle_search.solve.question.ask import Question
from puzzle_search.solve.question.parse import (
    parse_bytes,
    parse_fraction,
    parse_layers,
    parse_scenario,
)
from puzzle_search.solve.question.run_folder import RunFolder

# Wishes for the same thing: who names one gives up the other.
_SPEED = frozenset({"target_tps", "target_speedup"})
WISHES = (
    "target_tps", "target_speedup", "target_user_tps", "request_rate", "max_ttft", "max_tpot",
    "max_latency", "memory", "max_params", "max_kv_bytes", "max_score", "limits", "freeze",
    "portable", "metric", "goal", "margin",
)  # fmt: skip


def question_of(wishes: Mapping[str, Any], *, scenarios: Sequence[str], **named: Any) -> Question:
    """The question that wishes make.

    Args:
        wishes: by name; None, or left out, is no wish.
        scenarios: input and output lengths, each with limits of its own if any.
        named: what else a question has, such as model and GPU.

    Raises:
        InputError: a value has another form.
    """
    wished = {name: value for name, value in wishes.items() if value is not None}
    memory, freeze, params = (wished.get(name) for name in ("memory", "freeze", "max_params"))
    limits = Limits(
        tokens_per_second_per_gpu=wished.get("target_tps"),
        tokens_per_second_per_user=wished.get("target_user_tps"),
        ttft_ms=wished.get("max_ttft"),
        tpot_ms=wished.get("max_tpot"),
        latency_ms=wished.get("max_latency"),
        memory_bytes=None if memory is None else parse_bytes(memory),
        requests_per_second=wished.get("request_rate"),
        speedup=wished.get("target_speedup"),
    )
    child = ChildLimits(
        score=wished.get("max_score"),
        parameters=None if params is None else params * 1e9,
        kv_bytes_per_token=wished.get("max_kv_bytes"),
        linear=tuple(wished.get("limits", ())),
        frozen=frozenset() if freeze is None else parse_layers(freeze),
        portable_to=wished.get("portable"),
    )
    return Question(
        scenarios=[parse_scenario(text, limits) for text in scenarios],
        child=child,
        metric=wished.get("metric", "kl"),
        goal=wished.get("goal", "score"),
        margin=parse_fraction(str(wished.get("margin", 0))),
        **named,
    )


def wishes_in_run(
    run: RunFolder, given: Mapping[str, Any], *, without: Collection[str] = ()
) -> dict[str, Any]:
    """What is asked of a run: the wishes that are given, the others as its recipe has them.

    Args:
        run: whose recipe counts.
        given: wishes; None is not given.
        without: wishes of the recipe that do not count.
    """
    named = {name: value for name, value in given.items() if value is not None}
    left_out = {*without, *(_SPEED if _SPEED & named.keys() else ())}
    own = {
        name: value
        for name, value in run.recipe["solve"].items()
        if name in WISHES and name not in left_out
    }
    return own | named
