"""Measured throughput of a child over its parent's."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from puzzle_search.cost import Scenario
from puzzle_search.evaluate import measure_throughput
from puzzle_search.model import HeterogeneousDecoder
from puzzle_search.progress import Progress


def measured_speedup(
    parent: HeterogeneousDecoder,
    child: HeterogeneousDecoder,
    batches: Sequence[int],
    scenario: Scenario,
    *,
    iterations: int,
    clock: Callable[[], float],
) -> float:
    """Output tokens per second of the child over the parent's, both run in turn.

    Args:
        parent: on the device.
        child: on the same device.
        batches: of the parent and of the child.
        scenario: input and output tokens.
        iterations: counted runs of each.
        clock: seconds now, once all work submitted to the device has ended.
    """
    of_parent, of_child = measure_throughput(
        [parent, child],
        scenario,
        list(batches),
        iterations=iterations,
        clock=clock,
        progress=Progress("throughput"),
    )
    return of_child.tokens_per_second / of_parent.tokens_per_second
