"""The folder of a run: what it was made from, its metrics, its newest checkpoint."""

from __future__ import annotations

import contextlib
import json
import math
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from puzzle_search.data import StreamPosition
from puzzle_search.errors import InputError
from puzzle_search.files import (
    Journal,
    check_keys,
    folder_written_whole,
    read_json,
    resume_journal,
    write_text,
)

FORMAT = "puzzle-search.distillation-state/1"
WEIGHTS = "weights.safetensors"

_LARGEST = 1e18


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A folder of training state: steps done, and where the data goes on."""

    folder: Path
    step: int
    position: StreamPosition


@dataclass(frozen=True, kw_only=True)
class Best:
    """The step whose held-out loss is the least, and that loss; step 0 is the child before it."""

    step: int
    loss: float


class RunFolder:
    """``journal.jsonl`` says what the run was made from, ``metrics.jsonl`` how it goes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._journal = Journal(folder / "journal.jsonl")
        self._metrics = Journal(folder / "metrics.jsonl")
        self._checkpoints = folder / "checkpoints"
        self._best = folder / "best"

    def held(self) -> contextlib.AbstractContextManager[None]:
        """Keep others from training here, until the block or the process ends.

        Raises:
            InputError: someone else is training here.
        """
        return self._journal.held()

    def resume(self, made_from: dict[str, Any]) -> None:
        """Make the folder as it was when its newest checkpoint was written, or begin it.

        Raises:
            InputError: the folder holds a run that was made from something else.
        """
        if not self._journal.read():  # of a run that was to begin anew
            shutil.rmtree(self._checkpoints, ignore_errors=True)
            shutil.rmtree(self._best, ignore_errors=True)
        resume_journal(self._journal, made_from, dict)
        newest = self.newest()
        for leftover in self._checkpoints.glob("*"):
            if newest is None or leftover != newest.folder:
                shutil.rmtree(leftover)
        last = newest.step if newest is not None else -1
        kept = [entry for entry in self._steps() if entry["step"] <= last]
        write_text(self._metrics.path, "".join(json.dumps(entry) + "\n" for entry in kept))

    def newest(self) -> Checkpoint | None:
        """The newest checkpoint.

        Raises:
            InputError: it is damaged.
        """
        folders = sorted(self._checkpoints.glob("step_*"))
        if not folders:
            return None
        file = folders[-1] / "state.json"
        remedy = f"delete {folders[-1]} to begin anew"
        state = read_json(file, remedy=remedy)
        check_keys(state, file, required={"format", "step", "position"})
        check_keys(state["position"], file, required={"epoch", "document", "token"})
        numbers = [state["step"], *state["position"].values()]
        if state["format"] != FORMAT or any(
            type(number) is not int or not 0 <= number < _LARGEST for number in numbers
        ):
            raise InputError(f"{file} is damaged, or not of format {FORMAT}", remedy=remedy)
        return Checkpoint(
            folder=folders[-1],
            step=state["step"],
            position=StreamPosition(**state["position"]),
        )

    @contextlib.contextmanager
    def checkpoint(self, step: int, position: StreamPosition) -> Iterator[Path]:
        """Yield a folder to write state into; it becomes the only checkpoint when whole."""
        target = self._checkpoints / f"step_{step:09d}"
        older = list(self._checkpoints.glob("step_*"))
        with folder_written_whole(target) as folder:
            yield folder
            state = {"format": FORMAT, "step": step, "position": asdict(position)}
            write_text(folder / "state.json", json.dumps(state))
        # The best before this step is not gone back to any more, where a later one is better.
        best = self.best()
        older += [f for f in self._best.glob("step_*") if best is None or f != self._of(best)]
        for outdated in older:
            shutil.rmtree(outdated)

    def best(self) -> Best | None:
        """The best state so far; None where none was judged yet."""
        judged = [
            Best(step=entry["step"], loss=entry["held_out_loss"])
            for entry in self._steps()
            if "held_out_loss" in entry
        ]
        return min(judged, key=lambda state: (state.loss, state.step), default=None)

    @contextlib.contextmanager
    def best_state(self, best: Best) -> Iterator[Path]:
        """Yield a folder to write the weights of the best state into; it stays when whole."""
        with folder_written_whole(self._of(best)) as folder:
            yield folder

    def best_weights(self, best: Best) -> Path:
        """The file of its weights.

        Raises:
            InputError: it is gone.
        """
        file = self._of(best) / WEIGHTS
        if not file.is_file():
            raise InputError(
                f"{file}: the best state, of step {best.step}, is gone",
                remedy=f"delete {self.folder} to distil anew",
            )
        return file

    def _of(self, best: Best) -> Path:
        return self._best / f"step_{best.step:09d}"

    @property
    def steps_done(self) -> int:
        """Steps before the newest checkpoint."""
        newest = self.newest()
        return newest.step if newest is not None else 0

    def held_out(self, best: Best) -> dict[str, dict[str, float]]:
        """Held-out losses before the first step, of the state that is kept, and after the last."""
        entries = self._steps()
        kept = {"before": entries[0], "after": entries[best.step], "last": entries[-1]}
        return {
            when: {name: value for name, value in entry.items() if name.startswith("held_out_")}
            for when, entry in kept.items()
        }

    def _steps(self) -> list[dict[str, Any]]:
        """The metrics, one line a step."""
        entries = self._metrics.read()
        for number, entry in enumerate(entries):
            numbers = all(type(value) in (int, float) for value in entry.values())
            finite = numbers and all(abs(value) < math.inf for value in entry.values())
            if not finite or type(entry.get("step")) is not int or entry["step"] != number:
                raise InputError(
                    f"{self._metrics.path}, line {number + 1} is damaged",
                    remedy=f"delete {self.folder} to distil anew",
                )
        return entries

    def log(self, entry: Mapping[str, float]) -> None:
        """Add a line to the metrics."""
        self._metrics.append(entry)
