"""vLLM's server in a process of its own, and a client that takes next to nothing of the machine."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import re
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

START_SECONDS = 600


@dataclass(frozen=True, kw_only=True)
class Sent:
    """When a request was sent, and when its first and its last token came, in seconds."""

    sent: float
    first: float
    last: float


@contextlib.contextmanager
def server(python: str, model: Path, flags: Sequence[str], env: dict[str, str]) -> Iterator[int]:
    """The port of a vLLM server, while it runs."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    command = [python, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)]
    process = subprocess.Popen(
        [
            *command,
            *("--host", "127.0.0.1", "--port", str(port), "--served-model-name", "m"),
            *flags,
        ],
        env=os.environ | env,
        stdout=subprocess.DEVNULL,
    )
    try:
        until = time.monotonic() + START_SECONDS
        while not _answers(port):
            if process.poll() is not None or time.monotonic() > until:
                raise SystemExit(f"vLLM does not serve {model}: exit code {process.poll()}")
            time.sleep(0.5)
        yield port
    finally:
        process.terminate()
        process.wait(60)


def _answers(port: int) -> bool:
    try:
        urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
    except (urllib.error.URLError, OSError):
        return False
    return True


def counters(port: int, *names: str) -> float:
    """The sum of some of the server's counters, in seconds."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
        text = answer.read().decode()
    return sum(
        float(value)
        for name in names
        for value in re.findall(rf"^{re.escape(name)}_sum\{{.*\}} (\S+)$", text, re.M)
    )


async def request(port: int, input_len: int, output_len: int, vocabulary: int) -> Sent:
    """Stream one completion of random tokens to its full length."""
    body = json.dumps({
        "model": "m", "prompt": random.choices(range(vocabulary), k=input_len), "stream": True,
        "max_tokens": output_len, "ignore_eos": True, "temperature": 0,
    }).encode()  # fmt: skip
    head = (
        f"POST /v1/completions HTTP/1.1\r\nHost: m\r\nContent-Type: application/json\r\n"
        f"Connection: close\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    sent = time.perf_counter()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(head.encode() + body)
    first = last = 0.0
    async for line in reader:
        if line.startswith(b"data: {"):
            last = time.perf_counter()
            first = first or last
    writer.close()
    if not first:
        raise SystemExit("vLLM's server refused a request; see what it printed")
    return Sent(sent=sent, first=first, last=last)


async def closed_loop(
    port: int, sizes: tuple[int, int, int], *, streams: int, requests: int, lifetime_seconds: float
) -> list[Sent]:
    """Clients that send the next request when one is done, begun evenly over a request's life.

    The first and the last requests of all clients are not counted.
    """
    done: list[Sent] = []
    left = iter(range(requests + 2 * streams))

    async def client(number: int) -> None:
        await asyncio.sleep(lifetime_seconds * number / streams)
        for _ in left:
            done.append(await request(port, *sizes))

    await asyncio.gather(*map(client, range(streams)))
    done.sort(key=lambda one: one.sent)
    return done[streams:-streams]


async def poisson(
    port: int, sizes: tuple[int, int, int], *, per_second: float, requests: int, seed: int
) -> list[Sent]:
    """Requests at a rate, at the times at which `simulate` lets them arrive."""
    gaps = np.random.default_rng(seed).exponential(1 / per_second, requests)

    async def client(at: float) -> Sent:
        await asyncio.sleep(at)
        return await request(port, *sizes)

    return list(await asyncio.gather(*map(client, np.cumsum(gaps).tolist())))
