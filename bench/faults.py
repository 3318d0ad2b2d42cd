"""Break runs in every way that a machine does, and see that nothing is lost.

    python bench/faults.py [--every 6]

A pico run with every stage is killed at every sixth write to the disk, fills its disk, gets
signals, finds the clock set back, its journals damaged, its folder read-only or taken by another
run. Each time it goes on where it was, and in the end its results must be those of an unbroken
run, byte for byte. Prints what was tried, what survived and what was lost. Filling a disk takes
the right to mount one.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import io
import itertools
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from puzzle_search.errors import InputError  # noqa: E402
from puzzle_search.files import Journal  # noqa: E402
from puzzle_search.pipeline.recipes.recipe import read_recipe  # noqa: E402
from puzzle_search.pipeline.run import run_recipe  # noqa: E402
from tests.faults import SmallDisk, artefacts, begun_like  # noqa: E402
from tests.pico import make_pico, started  # noqa: E402
from tests.pipeline.test_run import write_recipe  # noqa: E402

_MOST_WRITES = 500  # to get further, before a run counts as stuck
_STEP_KIB = 96


class Faults:
    """A recipe, its unbroken run, and breakings of other runs of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        solve = {"rounds": 1, "target_speedup": 1.3}
        self.recipe = write_recipe(make_pico(folder / "pico"), folder, solve=solve)
        whole = yaml.safe_load(self.recipe.read_text()) | {
            "distill": {"tokens": 2048, "batch_tokens": 512}
        }
        self.recipe.write_text(yaml.safe_dump(whole))
        self.unbroken = folder / "unbroken"
        self._run(self.unbroken)

    def _run(self, run: Path) -> None:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            run_recipe(read_recipe(self.recipe), run)

    def _begun(self, name: str) -> Path:
        return begun_like(self.unbroken, self.folder / name)

    def _lost(self, run: Path) -> int:
        """End the run; artefacts that are not those of the unbroken one."""
        self._run(run)
        found, expected = artefacts(run), artefacts(self.unbroken)
        return sum(found.get(name) != lines for name, lines in expected.items())

    def struck(self, name: str, strike: Callable[[], None], every: int) -> tuple[int, int]:
        """A run that is struck again and again, each time that it has written so often.

        Args:
            name: of the fault.
            strike: what happens in the process at that write.
            every: writes between strikes; more where the run would never get further.
        """
        run, tried, at = self._begun(name), 0, every
        while at < _MOST_WRITES:
            before = _state(run)
            prepare = functools.partial(_strike_at, at, strike)
            process = started("run", self.recipe, "--run-dir", run, prepare=prepare)
            process.join(600)
            if process.exitcode == 0:
                break
            tried += 1
            at = every if _state(run) != before else at + 1
        return tried, self._lost(run)

    def full_disk(self) -> tuple[int, int]:
        """A disk that is full, and grows by little."""
        disk = SmallDisk(self.folder / "disk")
        try:
            kib = 4096
            disk.resize(kib=kib)
            run = begun_like(self.unbroken, disk.folder / "run")
            kib = _used_kib(disk.folder)
            tried = 0
            while True:
                kib += _STEP_KIB
                disk.resize(kib=kib)
                try:
                    self._run(run)
                except InputError as error:
                    if "no space" not in error.message.lower():
                        raise
                    tried += 1
                else:
                    return tried, self._lost(run)
        finally:
            disk.close()

    def read_only(self) -> tuple[int, int]:
        """A folder that nothing can be written to."""
        disk = SmallDisk(self.folder / "read-only")
        try:
            disk.resize(kib=16384)
            run = begun_like(self.unbroken, disk.folder / "run")
            disk.remount("ro")
            refused = _refused(functools.partial(self._run, run))
            disk.remount("rw")
            return 1, self._lost(run) + (not refused)
        finally:
            disk.close()

    def clock_set_back(self, every: int) -> tuple[int, int]:
        """Every look at the clock shows an hour less than the one before."""
        hours = itertools.count(1)
        real = time.time
        time.time = lambda: real() - 3600.0 * next(hours)
        try:
            return self.struck("clock", _signal(signal.SIGKILL), every)
        finally:
            time.time = real

    def damaged_journals(self) -> tuple[int, int]:
        """Every journal: without its tail it goes on, with a damaged middle it says so."""
        tried = lost = 0
        for journal in sorted(self.unbroken.rglob("*.jsonl")):
            whole = journal.read_bytes()
            lines = Journal(journal).read()
            journal.write_bytes(whole[:-3])
            tried += 1
            lost += Journal(journal).read() != lines[:-1]
            if len(lines) > 1:
                middle = whole.split(b"\n")
                middle[0] = middle[0][: len(middle[0]) // 2]
                journal.write_bytes(b"\n".join(middle))
                tried += 1
                lost += not _refused(Journal(journal).read)
            journal.write_bytes(whole)
        return tried, lost

    def two_runs(self) -> tuple[int, int]:
        """A second run in a directory in which one is at work."""
        run = self._begun("two")
        first = started("run", self.recipe, "--run-dir", run)
        while not Journal(run / "journal.jsonl").is_held():
            time.sleep(0.01)
        refused = _refused(functools.partial(self._run, run))
        first.join(600)
        return 1, self._lost(run) + (not refused) + (first.exitcode != 0)


def _refused(work: Callable[[], object]) -> bool:
    try:
        work()
    except InputError:
        return True
    return False


def _strike_at(nth: int, strike: Callable[[], None]) -> None:
    left, sync = nth, os.fsync

    def fsync(descriptor: int) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            strike()
        sync(descriptor)

    os.fsync = fsync
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


def _state(run: Path) -> list[tuple[str, int]]:
    """What a run has on disk, but for what tells only that it was begun again."""
    files = (file for file in run.rglob("*") if file.is_file() and ".tmp" not in str(file))
    return sorted(
        (str(file), file.stat().st_size) for file in files if file != run / "journal.jsonl"
    )


def _used_kib(folder: Path) -> int:
    found = os.statvfs(folder)
    return (found.f_blocks - found.f_bfree) * found.f_frsize // 1024


def _signal(number: signal.Signals) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), number)


def harness(folder: Path, every: int) -> Iterator[tuple[str, tuple[int, int]]]:
    """Each fault with how often it was tried, and what was lost."""
    faults = Faults(folder)
    yield "kill -9 at a write", faults.struck("killed", _signal(signal.SIGKILL), every)
    yield "SIGTERM at a write", faults.struck("terminated", _signal(signal.SIGTERM), 2 * every)
    yield "clock set back, kill -9", faults.clock_set_back(2 * every)
    try:
        yield "full disk", faults.full_disk()
        yield "read-only folder", faults.read_only()
    except PermissionError as error:
        print(f"not tried: {error}")
    yield "two runs in one directory", faults.two_runs()
    yield "damaged journals", faults.damaged_journals()


def main() -> int:
    """Print a table and one JSON line; 1 where something was lost."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--every", type=int, default=6, help="writes between two kills")
    every = parser.parse_args().every
    torch.set_num_threads(1)
    result: dict[str, dict[str, int]] = {}
    print(f"{'fault':28} {'tried':>6} {'survived':>9} {'lost':>5}")
    with tempfile.TemporaryDirectory() as made:
        for fault, (tried, lost) in harness(Path(made), every):
            result[fault] = {"tried": tried, "lost": lost}
            print(f"{fault:28} {tried:6} {tried - lost:9} {lost:5}", flush=True)
    print(json.dumps({"benchmark": "faults", "faults": result}))
    return int(any(found["lost"] for found in result.values()))


if __name__ == "__main__":
    sys.exit(main())
