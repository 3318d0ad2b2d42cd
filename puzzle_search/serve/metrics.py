"""What a server counts, for Prometheus."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)


class Metrics:
    """Counters of one server.

    Args:
        running: requests that have a slot.
        waiting: requests that wait for one.
    """

    def __init__(self, *, running: Callable[[], int], waiting: Callable[[], int]) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "puzzle_search_requests",
            "Requests by how they ended.",
            ["finish"],
            registry=self._registry,
        )
        self._prompt_tokens = self._counter("prompt_tokens", "Tokens of prompts.")
        self._output_tokens = self._counter("output_tokens", "Tokens of outputs.")
        self._ttft = self._histogram("time_to_first_token_seconds", "From arrival to first token.")
        self._tpot = self._histogram("time_per_output_token_seconds", "Mean time of later tokens.")
        self._latency = self._histogram("request_seconds", "From arrival to last token.")
        for name, description, read in (
            ("requests_running", "Requests that have a slot.", running),
            ("requests_waiting", "Requests that wait for a slot.", waiting),
        ):
            gauge = Gauge(f"puzzle_search_{name}", description, registry=self._registry)
            gauge.set_function(read)

    def _counter(self, name: str, description: str) -> Counter:
        return Counter(f"puzzle_search_{name}", description, registry=self._registry)

    def _histogram(self, name: str, description: str) -> Histogram:
        return Histogram(
            f"puzzle_search_{name}", description, buckets=_SECONDS, registry=self._registry
        )

    def ended(
        self, finish: str, *, prompt_tokens: int, output_tokens: int, times_s: list[float]
    ) -> None:
        """Count a request.

        Args:
            finish: ``stop``, ``length``, ``cancelled`` or ``failed``.
            prompt_tokens: tokens of its prompt.
            output_tokens: tokens that it got.
            times_s: arrival, and when its first and last token were there, if any was.
        """
        self._requests.labels(finish).inc()
        self._prompt_tokens.inc(prompt_tokens)
        self._output_tokens.inc(output_tokens)
        if output_tokens:
            arrival, first, last = times_s
            self._ttft.observe(first - arrival)
            self._latency.observe(last - arrival)
            if output_tokens > 1:
                self._tpot.observe((last - first) / (output_tokens - 1))

    def text(self) -> bytes:
        """All of them, in Prometheus' format."""
        text: bytes = generate_latest(self._registry)
        return text
