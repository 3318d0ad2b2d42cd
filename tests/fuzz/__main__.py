"""``make fuzz``: thousands of changed inputs to every reader, each reader in its own process."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections import Counter
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from puzzle_search import __version__
from tests.fuzz.attempt import Attempts
from tests.fuzz.readers import READERS
from tests.pico import Pico, make_pico

_SILENT_SECONDS = 120.0  # after which a process hangs in code that no signal reaches
_SHOWN = 3


class Worker:
    """A process that feeds one reader; replaced where an input kills it."""

    def __init__(self, name: str, seeds: range, folder: Path, pico: Pico) -> None:
        self.name, self.seeds, self._folder, self._pico = name, seeds, folder, pico
        self._starts = 0
        self.next = seeds.start
        self.start()

    def start(self) -> None:
        self.results, sending = multiprocessing.Pipe(duplex=False)
        self._starts += 1
        place = self._folder / f"{list(READERS).index(self.name)}-{self._starts}"
        self.process = multiprocessing.get_context("fork").Process(
            target=_feed,
            args=(self.name, range(self.next, self.seeds.stop), place, self._pico, sending),
        )
        self.process.start()
        sending.close()
        self.heard = time.monotonic()


def _feed(name: str, seeds: range, folder: Path, pico: Pico, sending: Connection) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    attempts = Attempts(READERS[name], folder, pico)
    attempts.valid()
    for seed in seeds:
        sending.send((seed, *attempts.run(seed)))


def fuzz(names: list[str], seeds: range, jobs: int) -> dict[str, dict[str, Any]]:
    """Outcomes by reader: how many of each, and the first of what must not be."""
    found: dict[str, dict[str, Any]] = {
        name: {"outcomes": Counter(), "cases": [], "seconds": time.monotonic()} for name in names
    }
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
        pico = make_pico(folder / "pico")
        pico.library(folder / "pico" / "library")
        waiting, working = list(names), []
        while waiting or working:
            while waiting and len(working) < jobs:
                name = waiting.pop(0)
                found[name]["seconds"] = time.monotonic()
                working.append(Worker(name, seeds, folder, pico))
            wait([worker.results for worker in working], timeout=5)
            for worker in list(working):
                if _listen(worker, found[worker.name]):
                    working.remove(worker)
                    found[worker.name]["seconds"] = time.monotonic() - found[worker.name]["seconds"]
                    _tell(worker.name, found[worker.name])
    return found


def _listen(worker: Worker, found: dict[str, Any]) -> bool:
    """Take what a worker sent; whether it has done all."""
    try:
        while worker.results.poll():
            seed, outcome, detail = worker.results.recv()
            worker.heard, worker.next = time.monotonic(), seed + 1
            found["outcomes"][outcome] += 1
            if detail:
                found["cases"].append((seed, outcome, detail))
    except EOFError:
        worker.process.join()
        if worker.next == worker.seeds.stop:
            return True
        outcome = "crash"
    else:
        if time.monotonic() - worker.heard < _SILENT_SECONDS:
            return False
        worker.process.kill()
        worker.process.join()
        outcome = "hang"
    found["outcomes"][outcome] += 1
    found["cases"].append((worker.next, outcome, f"exit code {worker.process.exitcode}"))
    worker.next += 1
    if worker.next == worker.seeds.stop or worker._starts > 20:
        return True
    worker.start()
    return False


def _tell(name: str, found: dict[str, Any]) -> None:
    counts = found["outcomes"]
    print(
        f"{name:32} {found['seconds']:6.0f} s  " + ", ".join(f"{n} {k}" for k, n in counts.items())
    )
    shown: Counter[str] = Counter()
    for seed, outcome, detail in found["cases"]:
        kind = f"{outcome} {detail.partition(':')[0] if outcome == 'nonsense' else detail[:60]}"
        shown[kind] += 1
        if shown[kind] <= _SHOWN:
            print(f"    seed {seed}, {outcome}: {detail}")
    sys.stdout.flush()


def main() -> int:
    """Feed the readers; 1 where something happened that must not."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=2000, help="to each reader")
    parser.add_argument("--from", dest="first", type=int, default=0, help="the first seed")
    parser.add_argument("--reader", action="append", choices=list(READERS), default=[])
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="readers at a time")
    options = parser.parse_args()
    seeds = range(options.first, options.first + options.inputs)
    found = fuzz(options.reader or list(READERS), seeds, options.jobs)
    total: Counter[str] = Counter()
    for name in found:
        total += found[name]["outcomes"]
    bad = sum(total.values()) - total["refused"] - total["taken"]
    print(f"{sum(total.values()):,} inputs to {len(found)} readers: {bad} failures")
    print(json.dumps({"bench": "fuzz", "version": __version__, "readers": len(found), **total}))
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
