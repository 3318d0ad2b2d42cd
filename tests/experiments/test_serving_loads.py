"""Loads on a server: what the client sends and counts, and what is made of it."""

from __future__ import annotations

import asyncio
import json
import sys

import pytest

from tests.pico import ROOT

sys.path.insert(0, str(ROOT / "experiments" / "serving"))

from client import Sent, closed_loop, poisson, request
from loads import SCENARIO, figures_of

TOKENS = 3
Bodies = list[dict[str, object]]


async def answered(bodies: Bodies, *, status: str = "200 OK") -> tuple[asyncio.Server, int]:
    """A server that streams three tokens to everyone, and notes what it was asked."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        [length] = [line.split()[1] for line in head.splitlines() if "Content-Length" in line]
        bodies.append(json.loads(await reader.readexactly(int(length))))
        writer.write(f"HTTP/1.1 {status}\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
        for _ in range(TOKENS if status == "200 OK" else 0):
            writer.write(b'19\r\ndata: {"choices": []}\n\n\r\n')
            await writer.drain()
        writer.write(b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    return server, server.sockets[0].getsockname()[1]


def test_a_closed_loop_counts_what_lies_between_its_ends() -> None:
    bodies: Bodies = []

    async def run() -> list[Sent]:
        server, port = await answered(bodies)
        async with server:
            return await closed_loop(
                port, (5, TOKENS, 90), streams=4, requests=10, lifetime_seconds=0.0
            )

    done = asyncio.run(run())
    assert len(bodies) == 10 + 2 * 4
    assert len(done) == 10
    assert all(one.sent < one.first <= one.last for one in done)
    for body in bodies:
        assert len(body["prompt"]) == 5  # type: ignore[arg-type]
        assert all(0 <= token < 90 for token in body["prompt"])  # type: ignore[attr-defined]
        assert (body["max_tokens"], body["ignore_eos"], body["stream"]) == (TOKENS, True, True)


def test_arrivals_at_a_rate_come_in_order() -> None:
    bodies: Bodies = []

    async def run() -> list[Sent]:
        server, port = await answered(bodies)
        async with server:
            return await poisson(port, (5, TOKENS, 90), per_second=1e3, requests=20, seed=0)

    done = asyncio.run(run())
    assert len(done) == len(bodies) == 20
    assert [one.sent for one in done] == sorted(one.sent for one in done)


def test_a_refused_request_ends_the_run() -> None:
    async def run() -> None:
        server, port = await answered([], status="400 Bad Request")
        async with server:
            await request(port, 5, TOKENS, 90)

    with pytest.raises(SystemExit, match="refused"):
        asyncio.run(run())


def test_figures_are_medians_and_the_rate_of_ends() -> None:
    steps = SCENARIO.decode_steps
    ends = [Sent(sent=n, first=n + 0.1 * (n + 1), last=n + 2 + steps * 0.01) for n in range(3)]
    figures = figures_of(ends)
    assert figures["ttft_ms"] == pytest.approx(200)
    # From 0.2 s after it was sent to 2 s and a hundredth a step.
    assert figures["tpot_ms"] == pytest.approx(1e3 * (1.8 + steps * 0.01) / steps)
    assert figures["tokens_per_second"] == pytest.approx(SCENARIO.output_len)
