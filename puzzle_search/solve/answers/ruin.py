"""Answers that wreck the model: optimal for what was asked, and of no use to anybody."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from puzzle_search.errors import InfeasibleError
from puzzle_search.solve.answers.diagnosis import RATES, extremes, show
from puzzle_search.solve.problem.measures import Bound, item_measure
from puzzle_search.solve.problem.problem import Problem
from puzzle_search.solve.search.search import search
from puzzle_search.solve.search.solution import Solution

# Summed KL, nats a token. Children measured near it kept three fifths of their parent's next-token
# accuracy, those beyond 2.5 two fifths or less (docs/solving.md).
FALLS_APART = 1.0
_SECONDS = 5.0


@dataclass(frozen=True, kw_only=True)
class Ruin:
    """An answer beyond the damage at which text falls apart.

    Attributes:
        score: its summed damage.
        near: what can be had within that damage, for people.
    """

    score: float
    near: tuple[str, ...]

    def __str__(self) -> str:
        within = "; ".join(self.near) or "nothing of this kind"
        return (
            f"score {self.score:.4g}: beyond a summed damage of {FALLS_APART:g} nat text falls "
            f"apart; within it: {within}"
        )

    def as_dict(self) -> dict[str, Any]:
        """As results keep it."""
        return {"score": self.score, "falls_apart_at": FALLS_APART, "near": list(self.near)}


def ruin(solution: Solution) -> Ruin | None:
    """What to tell of an answer whose damage, in KL, is beyond `FALLS_APART`; None of any other."""
    if solution.score <= FALLS_APART:
        return None
    problem = solution.problem
    damage = item_measure("score", problem.damage, problem.attention, problem.ffn)
    bound = Bound(limit="score", measure=damage, at_most=FALLS_APART)
    others = tuple(b for b in problem.bounds if b.limit != "score")
    mild = replace(problem, bounds=(*others, bound))
    return Ruin(score=solution.score, near=tuple(_near(mild)))


def _near(mild: Problem) -> list[str]:
    """The question within the damage, or how far each of its limits can be taken there."""
    try:
        kept = search(mild, max_seconds=_SECONDS)
    except InfeasibleError:  # not within that time
        kept = None
    if kept is not None:
        speed = kept.cost.tokens_per_second_per_gpu
        return [f"{speed:,.0f} tok/s/GPU, all limits kept, by a max score of {FALLS_APART:g}"]
    return [
        f"{'at most' if e.bound.limit in RATES or e.bound.turned else 'at least'} "
        f"{show(e.bound, e.reached, reachable=True)}, the other limits kept"
        for e in extremes(mild)
        if e.reached is not None and e.bound.limit != "score"
    ]
