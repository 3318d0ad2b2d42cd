"""Successive halving: short probes of many children, of which the better half goes on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from puzzle_search.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Probe:
    """What a child's held-out loss was after another part of the tokens.

    Attributes:
        child: its number.
        rung: of the halving, from 0.
        tokens: of training in this rung.
        held_out_kl: after it, nats.
    """

    child: int
    rung: int
    tokens: int
    held_out_kl: float


def probe_tokens(children: int, tokens: int, batch_tokens: int) -> list[int]:
    """Tokens for each child that is left in each rung: all rungs cost the same.

    Args:
        children: in the first rung; half of them, rounded up, go on until one is left.
        tokens: of all probes together.
        batch_tokens: the least that a probe trains on.

    Raises:
        InputError: a child would get less than a batch.
    """
    left = [children]
    while left[-1] > 2:
        left.append(-(-left[-1] // 2))
    shares = [tokens // len(left) // one // batch_tokens * batch_tokens for one in left]
    if not shares[0]:
        least = batch_tokens * children * len(left)
        raise InputError(
            f"{tokens:,} tokens are too few for probes of {children} children in batches of "
            f"{batch_tokens:,}",
            remedy=f"give at least {least:,}, or compare fewer children",
        )
    return shares


def successive_halving(
    children: int, tokens: list[int], probe: Callable[[int, int, int], float]
) -> list[Probe]:
    """Train all children, then the better half of them further, until one is left.

    Args:
        children: how many.
        tokens: of each rung, for each child in it.
        probe: trains a child (its number, rung, tokens), from where its last probe left it, and
            gives its held-out KL.

    Returns:
        All probes in order; the child of the last one with least loss is the best.
    """
    probes: list[Probe] = []
    left = list(range(children))
    for rung, each in enumerate(tokens):
        found = [
            Probe(child=n, rung=rung, tokens=each, held_out_kl=probe(n, rung, each)) for n in left
        ]
        probes += found
        ranked = sorted(found, key=lambda one: one.held_out_kl)
        left = sorted(one.child for one in ranked[: -(-len(ranked) // 2)])
    return probes


def best_child(probes: list[Probe]) -> int:
    """The child of least held-out KL in the last rung."""
    last = [one for one in probes if one.rung == probes[-1].rung]
    return min(last, key=lambda one: one.held_out_kl).child
