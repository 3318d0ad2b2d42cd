"""One changed input to one reader, and everything that must not happen."""

from __future__ import annotations

import dataclasses
import math
import os
import shutil
import signal
import sys
import traceback
import unicodedata
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pydantic import BaseModel

from puzzle_search.errors import PuzzleSearchError
from tests.fuzz.mutate import Mutator
from tests.fuzz.readers import Reader
from tests.pico import ROOT, Pico

CPU_SECONDS = 2.0
GROWTH_BYTES = 300e6
_LARGEST = 1e19  # above every rate and size of real hardware
# Kept, shown, and compared as they were read.
_VERBATIM = {"raw", "solution", "sidecar", "data", "notes", "rows", "quality", "identity",
             "messages", "text"}  # fmt: skip
# Differences of losses may be below 0.
_SIGNED = {"value", "loss", "held_out_loss", "kl", "lm_loss"}
_SYSTEM = (sys.prefix, sys.base_prefix, "/proc", "/sys", "/usr", "/lib", "/dev", "/etc/ssl")


class Hang(BaseException):
    """A reader worked for longer than it may."""


class Attempts:
    """A reader and a folder of its files, changed anew each time."""

    def __init__(self, reader: Reader, folder: Path, pico: Pico) -> None:
        self.reader, self._pico = reader, pico
        self._valid, self._folder = folder / "valid", folder / "work"
        for made in (self._valid, self._folder):
            made.mkdir(parents=True)
            reader.prepare(made, pico)
        self._files = sorted(
            file.relative_to(self._valid)
            for pattern in reader.changed
            for file in self._valid.glob(pattern)
            if file.is_file()
        )
        self._outside: set[str] = set()
        self._watching = False
        self._allowed = (
            *_SYSTEM,
            str(ROOT),
            str(folder),
            str(pico.parent.parent.resolve()),
            os.environ["XDG_CACHE_HOME"],
        )
        sys.addaudithook(self._audit)

    def valid(self) -> Any:
        """What the unchanged files are read as."""
        return self.reader.read(self._folder, self._pico)

    def run(self, seed: int) -> tuple[str, str]:
        """Change a file by a seed and read: what came of it, and details of what must not be."""
        mutator = Mutator(f"{self.reader.name}/{seed}")
        file = mutator.choose(self._files)
        mutator.file(self._folder / file)
        if seed % 4:
            with suppress(Exception):  # where the change left nothing to vouch for
                self.reader.vouch(self._folder)
        self._outside.clear()
        grown = _PeakGrowth()
        try:
            with grown, _watched(self):
                taken = self.reader.read(self._folder, self._pico)
        except PuzzleSearchError as error:
            told = str(error)
            outcome = ("refused", "") if len(told) < 4500 else ("long message", told[:200])
        except Hang as error:
            outcome = "hang", f"{file}, {_where(error)}"
        except BaseException as error:
            outcome = "exception", f"{file}, {_where(error)}: {error!r:.200}"
        else:
            wrong = next(nonsense(taken, ""), None)
            outcome = ("nonsense", f"{file}: {wrong}") if wrong else ("taken", "")
        if self._outside:
            outcome = "outside", f"{file}: {sorted(self._outside)[:3]}"
        if grown.bytes > GROWTH_BYTES:
            outcome = "growth", f"{file}: {grown.bytes / 1e6:.0f} MB"
        shutil.rmtree(self._folder)
        shutil.copytree(self._valid, self._folder, symlinks=True)
        return outcome

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self._watching or event not in ("open", "os.listdir", "os.scandir", "shutil.rmtree"):
            return
        path = arguments[0]
        if isinstance(path, bytes):
            path = path.decode("utf-8", "replace")
        if isinstance(path, str | Path):
            resolved = str(Path(path).resolve()) if "\0" not in str(path) else str(path)
            if not resolved.startswith(self._allowed):
                self._outside.add(f"{event} {path}")


@contextmanager
def _watched(attempts: Attempts) -> Iterator[None]:
    def ring(*_: object) -> None:
        raise Hang

    signal.signal(signal.SIGPROF, ring)
    signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
    attempts._watching = True
    try:
        yield
    finally:
        attempts._watching = False
        signal.setitimer(signal.ITIMER_PROF, 0)


def _where(error: BaseException) -> str:
    """The last place of the package that an error passed."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "/puzzle_search/" in frame.filename] or frames
    return f"{Path(own[-1].filename).name}:{own[-1].lineno} in {own[-1].name}"


class _PeakGrowth:
    """How much memory a block took at its peak, above what the process had before it."""

    bytes = 0.0

    def __enter__(self) -> None:
        Path("/proc/self/clear_refs").write_text("5")
        self._before = _status("VmHWM")

    def __exit__(self, *_: object) -> None:
        self.bytes = _status("VmHWM") - self._before


def _status(key: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return float(line.split()[1]) * 1024
    raise AssertionError(key)


def nonsense(value: Any, name: str) -> Iterator[str]:
    """Numbers that nothing has, and texts that do more than stand there."""
    last = name.rpartition(".")[2]
    if last in _VERBATIM:
        return
    if isinstance(value, bool) or value is None:
        return
    if isinstance(value, int | float | np.number):
        if (
            not math.isfinite(value)
            or abs(value) > _LARGEST
            or (value < 0 and last not in _SIGNED and last not in ("kl", "lm_loss"))
        ):
            yield f"{name} is {value!r}"
    elif isinstance(value, str):
        if any(unicodedata.category(c) == "Cc" and c not in "\n\t" for c in value):
            yield f"{name} holds control characters: {value!r:.80}"
    elif isinstance(value, np.ndarray):
        if (
            value.dtype.kind in "fi"
            and value.size
            and not (np.isfinite(value).all() and (value >= 0).all() and (value <= _LARGEST).all())
        ):
            yield f"{name} has {value.min()} to {value.max()}"
    elif isinstance(value, pd.DataFrame):
        for column in value.select_dtypes("number"):
            yield from nonsense(value[column].to_numpy(), f"{name}.{column}")
    elif isinstance(value, BaseModel):
        yield from nonsense(dict(value), name)
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from nonsense(getattr(value, field.name), f"{name}.{field.name}")
    elif isinstance(value, Mapping):
        for key, entry in value.items():
            yield from nonsense(key, f"{name}'s key")
            yield from nonsense(entry, f"{name}.{key}")
    elif isinstance(value, list | tuple | set | frozenset):
        for entry in value:
            yield from nonsense(entry, name)
