"""A model under the most load that its slots take: continuous batching of many requests."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

from puzzle_search.cost import Scenario
from puzzle_search.evaluate.figures import ServingFigures, time_figures
from puzzle_search.evaluate.throughput import Workspace, engine_bytes, random_prompts
from puzzle_search.progress import Progress
from puzzle_search.runtime import Engine, Request, Scheduler, ServedRequest

_WARM_UP_TOKENS = 4  # of each warm-up request: prefill, and a few decode steps


@dataclass(frozen=True, kw_only=True)
class MaxLoad(ServingFigures):
    """Requests served; ``tokens_per_second`` is all their output over all the time.

    Attributes:
        requests: how many were served.
    """

    requests: int


def measure_max_load(
    engine: Engine,
    scenario: Scenario,
    *,
    requests: int,
    clock: Callable[[], float],
    progress: Progress | None = None,
) -> MaxLoad:
    """Keep every slot busy: as many clients as slots, each sends when its last request ended.

    Times are of single requests, on the host, and count the wait for a prefill.

    Args:
        engine: as `open_engine` makes it.
        scenario: prompt and output length of every request.
        requests: how many to serve, after a warm-up of one to each slot.
        clock: seconds now, once all work submitted to the device has ended.
        progress: shows how far it is.
    """
    prompts_BL = random_prompts(engine.decoder, engine.slots, scenario).cpu()
    space = Workspace(engine.decoder.device)
    progress = progress or Progress("max load")

    def serve(count: int, output_len: int, advance: Callable[[str], None]) -> list[ServedRequest]:
        waiting = (
            Request(ids_L=prompts_BL[number % engine.slots], output_len=output_len)
            for number in range(count)
        )
        scheduler, done = Scheduler(engine, clock=clock), []
        for request in itertools.islice(waiting, engine.slots):
            scheduler.submit(request)
        while scheduler.busy:
            for served in scheduler.turn():
                done.append(served)
                advance("requests")
                for request in itertools.islice(waiting, 1):
                    scheduler.submit(request)
        return done

    serve(engine.slots, min(_WARM_UP_TOKENS, scenario.output_len), lambda _: None)
    with progress.over(requests) as advance, space.watched():
        start = clock()
        served = serve(requests, scenario.output_len, advance)
        seconds = clock() - start
    memory = engine_bytes(engine)
    return MaxLoad(
        batch=engine.slots,
        tokens_per_second=requests * scenario.output_len / seconds,
        **time_figures(
            ttft_ms=[one.ttft_ms for one in served],
            tpot_ms=[one.tpot_ms for one in served],
            latency_ms=[one.latency_ms for one in served],
        ),
        memory_bytes=memory,
        peak_bytes=space.beside(memory),
        requests=requests,
    )
