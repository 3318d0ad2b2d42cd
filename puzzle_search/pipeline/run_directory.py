"""The run directory: one folder a stage, a journal, and stages that are done stay done."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from puzzle_search import __version__
from puzzle_search.files import Journal, check_own_folder, read_json, value_hash, write_text


class RunDirectory:
    """Runs stages once.

    A stage is keyed by a hash of what it depends on: its own settings and the keys of the stages
    before it. A finished stage with the same key is skipped, an unfinished one is continued in
    its folder, one with another key is begun anew.
    """

    def __init__(self, folder: Path) -> None:
        check_own_folder(folder, ("journal.jsonl",), "a run directory")
        self.folder = folder
        self.skipped: list[str] = []
        self._journal = Journal(folder / "journal.jsonl")
        self._keys: dict[str, str] = {}

    def held(self) -> AbstractContextManager[None]:
        """Keep other runs out of this directory, until the block or the process ends.

        Raises:
            InputError: a run is at work here.
        """
        return self._journal.held()

    def stage(
        self, name: str, settings: Any, needs: list[str], work: Callable[[Path], None]
    ) -> Path:
        """Do a stage unless it is done; return its folder.

        Args:
            name: of the stage and its folder.
            settings: whatever its result depends on, besides the stages it needs.
            needs: earlier stages whose results it uses.
            work: does the stage, given its folder.
        """
        key = value_hash([__version__, name, settings, [self._keys[need] for need in needs]])
        self._keys[name] = key
        folder = self.folder / name
        begun, done = folder / "begun.json", folder / "done.json"
        if _key_in(done) == key:
            self.skipped.append(name)
            return folder
        done.unlink(missing_ok=True)
        if folder.exists() and _key_in(begun) != key:
            # First, lest a kill leaves half of the folder under a key that reads as valid.
            begun.unlink(missing_ok=True)
            shutil.rmtree(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_text(begun, json.dumps({"key": key}))
        self._journal.append({"time": time.time(), "stage": name, "event": "begun", "key": key})
        start = time.perf_counter()
        work(folder)
        seconds = round(time.perf_counter() - start, 2)
        write_text(done, json.dumps({"key": key, "seconds": seconds}))
        self._journal.append(
            {"time": time.time(), "stage": name, "event": "done", "seconds": seconds}
        )
        return folder


def _key_in(file: Path) -> str | None:
    if not file.exists():
        return None
    return str(read_json(file, remedy=f"remove {file.parent}").get("key"))
