"""What the tests let workers do; at the top of a module, so that it can be sent to them."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from puzzle_search.errors import InputError


def count_up(job: tuple[str, int]) -> Iterator[tuple[str, int]]:
    """``n`` results in order."""
    name, n = job
    for number in range(n):
        yield name, number


def sleep_then_name(job: tuple[str, float]) -> Iterator[str]:
    """A job that takes its time."""
    name, seconds = job
    time.sleep(seconds)
    yield name


def bits_of_a_sum(seed: int) -> Iterator[bytes]:
    """A product large enough that the order of its sums shows in the last bits."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    a, b = torch.randn(2, 257, 1031, generator=generator)
    yield (a @ b.T).sum().numpy().tobytes()


def threads(_: int) -> Iterator[int]:
    """How many threads torch computes with."""
    import torch

    yield torch.get_num_threads()


def die_until(job: tuple[str, str, int]) -> Iterator[str]:
    """SIGKILL the own process the first ``times`` times, then give results."""
    name, folder, times = job
    yield f"{name} first"
    mark = Path(folder) / name
    so_far = len(mark.read_text()) if mark.exists() else 0
    if so_far < times:
        mark.write_text("x" * (so_far + 1))
        os.kill(os.getpid(), signal.SIGKILL)
    yield f"{name} second"


def refuse(name: str) -> Iterator[str]:
    """An error that a user can act on; other jobs take a minute."""
    if name != "bad":
        time.sleep(60)
        yield name
    raise InputError("the bad job was refused", remedy="leave it out")


def divide(number: int) -> Iterator[float]:
    """A plain bug."""
    yield 1 / number


def write_pid_and_wait(folder: str) -> Iterator[int]:
    """Say who runs, then take a minute."""
    (Path(folder) / str(os.getpid())).touch()
    time.sleep(60)
    yield 0


def node_and_wait(job: tuple[int, str]) -> Iterator[tuple[int, bytes]]:
    """Say on which Ray node this runs; compute once there is a file ``go``."""
    import ray

    number, folder = job
    node = ray.get_runtime_context().get_node_id()
    (Path(folder) / f"{number}-{os.getpid()}.node").write_text(node)
    deadline = time.monotonic() + 120
    while not (Path(folder) / "go").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    for result in bits_of_a_sum(number):
        yield number, result


def visible_gpu(_: int) -> Iterator[str | None]:
    """The GPUs that a job may use."""
    time.sleep(1)
    yield os.environ.get("CUDA_VISIBLE_DEVICES")


def cannot_be_sent(_: int) -> Iterator[object]:
    """A result without a pickled form."""
    yield threading.Lock()
