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

JOURNAL, BEGUN, DONE = "journal.jsonl", "begun.json", "done.json"
PROBES = "probes.json"


class RunDirectory:
    """Runs stages once.

    A stage is keyed by a hash of what it depends on: its own settings and the keys of the stages
    before it. A finished stage with the same key is skipped, an unfinished one is continued in
    its folder, one with another key is begun anew. When it is done, the folders of the stages that
    were made from what it was before are removed.

    Attributes:
        skipped: stages that were done already.
        removed: stages whose results were made from what is no longer there.
    """

    def __init__(self, folder: Path) -> None:
        check_own_folder(folder, (JOURNAL,), "a run directory")
        self.folder = folder
        self.skipped: list[str] = []
        self.removed: list[str] = []
        self._journal = Journal(folder / JOURNAL)
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
        made_from = {need: self._keys[need] for need in needs}
        key = value_hash([__version__, name, settings, list(made_from.values())])
        self._keys[name] = key
        folder = self.folder / name
        begun, done = folder / BEGUN, folder / DONE
        if _record(done).get("key") == key:
            self.skipped.append(name)
            return folder
        done.unlink(missing_ok=True)
        if folder.exists() and _record(begun).get("key") != key:
            _remove(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_text(begun, json.dumps({"key": key, "needs": made_from}))
        self._journal.append({"time": time.time(), "stage": name, "event": "begun", "key": key})
        start = time.perf_counter()
        work(folder)
        seconds = round(time.perf_counter() - start, 2)
        write_text(done, json.dumps({"key": key, "needs": made_from, "seconds": seconds}))
        self._journal.append(
            {"time": time.time(), "stage": name, "event": "done", "seconds": seconds}
        )
        self._remove_made_from(name, key)
        return folder

    def drop(self, name: str) -> None:
        """Remove what a stage left that is no longer asked for, and what was made from it."""
        if (self.folder / name).is_dir():
            self._remove_stage(name)
        self._remove_made_from(name, None)

    def _remove_made_from(self, name: str, key: str | None) -> None:
        """Remove the stages that were made from another result of this one, and so on."""
        for begun in sorted(self.folder.glob(f"*/{BEGUN}")):
            made_from = _record(begun).get("needs", {})
            if name in made_from and made_from[name] != key:
                stage = begun.parent.name
                self._remove_stage(stage)
                self._remove_made_from(stage, None)

    def _remove_stage(self, name: str) -> None:
        _remove(self.folder / name)
        self.removed.append(name)
        self._journal.append({"time": time.time(), "stage": name, "event": "removed"})


def _remove(folder: Path) -> None:
    # First, lest a kill leaves half of the folder under a key that reads as valid.
    for name in (DONE, BEGUN):
        (folder / name).unlink(missing_ok=True)
    shutil.rmtree(folder)


def _record(file: Path) -> dict[str, Any]:
    """What a stage wrote of itself; empty where it wrote nothing."""
    return read_json(file, remedy=f"remove {file.parent}") if file.exists() else {}
