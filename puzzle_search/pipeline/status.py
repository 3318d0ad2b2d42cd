"""How far a run is: its stages, what each took and gave, and what may come next."""

from __future__ import annotations

import csv
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from puzzle_search.data.documents import SELF, is_self
from puzzle_search.data.self_text import FORMAT, SIDECAR
from puzzle_search.errors import InputError
from puzzle_search.files import Journal, damage_told, read_json, read_yaml
from puzzle_search.pipeline.run_directory import BEGUN, DONE, JOURNAL, PROBES
from puzzle_search.solve.question.run_folder import RECIPE, RECIPE_FORMAT

_LONGEST_SECONDS = 1e9
State = Literal["done", "running", "interrupted", "left"]
STAGES = (
    "import", "text", "profile", "baseline", "library", "score", "solve", "probe", "build",
    "distill", "export", "evaluate", "bench", "generate",
)  # fmt: skip
# Where a stage writes a line for every result, besides what it began with.
_PROGRESS = {
    "text": "self/journal",
    "profile": "journal.jsonl",
    "library": "journal.jsonl",
    "score": "journal.jsonl",
    "distill": "child.run/metrics.jsonl",
}


@dataclass(frozen=True, kw_only=True)
class StageStatus:
    """One stage.

    Attributes:
        seconds: that it took, or has taken since it was last begun; None where not begun.
        gave: its result in words; of an unfinished one how far it is.
    """

    name: str
    state: State
    seconds: float | None
    gave: str


@dataclass(frozen=True, kw_only=True)
class RunStatus:
    """All stages of a run.

    Attributes:
        running: whether a process is at work there.
        recipe: by which the run can go on; None where a run of an older version kept none.
    """

    folder: Path
    running: bool
    recipe: Path | None
    stages: tuple[StageStatus, ...]

    @property
    def is_done(self) -> bool:
        """Whether every stage is."""
        return all(stage.state == "done" for stage in self.stages)

    def as_dict(self) -> dict[str, Any]:
        """As ``status --json`` prints it."""
        return {
            "run": str(self.folder),
            "running": self.running,
            "done": self.is_done,
            "recipe": None if self.recipe is None else str(self.recipe),
            "stages": [asdict(stage) for stage in self.stages],
        }


def run_status(folder: Path) -> RunStatus:
    """Look at a run directory; nothing in it changes.

    Raises:
        InputError: it is none, or a file in it is damaged.
    """
    journal, recipe = Journal(folder / JOURNAL), folder / RECIPE
    entries = journal.read() if journal.path.is_file() else []
    if not recipe.is_file() and not any("stage" in entry for entry in entries):
        raise InputError(
            f"{folder} is no run directory: it has no {JOURNAL} of stages",
            remedy="name the folder that 'puzzle-search run' worked in, such as runs/NAME",
        )
    running = journal.is_held()
    with damage_told(journal.path, "delete that line"):
        begun_at = {e["stage"]: float(e["time"]) for e in entries if e.get("event") == "begun"}
    asked = read_yaml(recipe, format=RECIPE_FORMAT) if recipe.is_file() else {}
    stages_asked = {
        "import": str(asked.get("parent", "")).endswith(".gguf"),
        "text": is_self(asked["data"]["source"]) if "data" in asked else False,
        "probe": asked.get("solve", {}).get("candidates", 1) > 1,
        "distill": "distill" in asked,
        "export": "engine" in asked,
    }
    stages = tuple(
        _stage(folder / name, begun_at.get(name), running=running)
        for name in STAGES
        if stages_asked.get(name, True) or (folder / name / BEGUN).is_file()
    )
    kept = recipe if recipe.is_file() else None
    return RunStatus(folder=folder, running=running, recipe=kept, stages=stages)


def _stage(folder: Path, begun_at: float | None, *, running: bool) -> StageStatus:
    name = folder.name
    if (folder / DONE).is_file():
        with damage_told(folder, f"remove {folder} and run again"):
            seconds = _read(folder / DONE)["seconds"]
            if not 0 <= seconds < _LONGEST_SECONDS:
                raise ValueError(f"{seconds} seconds")
            return StageStatus(name=name, state="done", seconds=seconds, gave=_gave(folder))
    if not (folder / BEGUN).is_file():
        return StageStatus(name=name, state="left", seconds=None, gave="")
    since = time.time() - begun_at if running and begun_at is not None else None
    state: State = "running" if running else "interrupted"
    return StageStatus(name=name, state=state, seconds=since, gave=_so_far(folder))


def _so_far(folder: Path) -> str:
    file = folder / _PROGRESS.get(folder.name, "")
    if not file.is_file():
        return ""
    results = sum("made_from" not in entry for entry in Journal(file).read())
    return f"{results} results so far"


def _gave(folder: Path) -> str:
    """What a stage that is done found, in a few words."""
    return _TOLD[folder.name](folder)


def _import(folder: Path) -> str:
    return _sized("parent", folder.glob("*/*.safetensors"))


def _text(folder: Path) -> str:
    return f"{read_yaml(folder / SELF / SIDECAR, format=FORMAT)['texts']} texts"


def _profile(folder: Path) -> str:
    return f"{len(_rows(folder / 'latency.csv'))} latencies"


def _baseline(folder: Path) -> str:
    measured = _read(folder / "baseline.json")["measured"]
    return f"parent {measured['tokens_per_second']:,.0f} tok/s at batch {measured['batch']}"


def _library(folder: Path) -> str:
    return f"{len(_read(folder / 'library.json')['entries'])} variants"


def _score(folder: Path) -> str:
    columns = ("first_layer", "last_layer", "attention", "ffn")
    rows = _rows(folder / "scores.csv")
    return f"{len({tuple(row[c] for c in columns) for row in rows})} replacements"


def _solve(folder: Path) -> str:
    found = _read(folder / "solution.json")
    speed = found["scenarios"][0]["tokens_per_second_per_gpu"]
    return f"{found['status']}, score {found['score']:.4g}, {speed:,.0f} tok/s predicted"


def _probe(folder: Path) -> str:
    found = _read(folder / PROBES)
    return f"candidate {found['chosen'] + 1} of {len(found['candidates'])}"


def _build(folder: Path) -> str:
    return _sized("child", (folder / "child").glob("*.safetensors"))


def _distill(folder: Path) -> str:
    held_out = _read(folder / "child" / "distillation.json")["held_out"]
    before, after = (held_out[when]["held_out_loss"] for when in ("before", "after"))
    return f"held-out loss {before:.4g} to {after:.4g}"


def _export(folder: Path) -> str:
    return _sized("file", folder.glob("*.gguf"))


def _sized(what: str, files: Iterable[Path]) -> str:
    return f"{what} of {sum(file.stat().st_size for file in files) / 1e6:,.1f} MB"


def _evaluate(folder: Path) -> str:
    child = _read(folder / "quality.json")["child"]
    preserved = child["accuracy_preserved"]
    kept = "" if preserved is None else f", {preserved:.1%} of the parent's accuracy"
    return f"KL {child['kl']:.4g}{kept}"


def _bench(folder: Path) -> str:
    found = _read(folder / "bench.json")
    child, parent = (found[who]["tokens_per_second"] for who in ("child", "parent"))
    return f"child {child:,.0f} tok/s, {child / parent:.2f} x the parent"


def _generate(folder: Path) -> str:
    return "samples.json"


_TOLD = {
    "import": _import,
    "text": _text,
    "profile": _profile,
    "baseline": _baseline,
    "library": _library,
    "score": _score,
    "solve": _solve,
    "probe": _probe,
    "build": _build,
    "distill": _distill,
    "export": _export,
    "evaluate": _evaluate,
    "bench": _bench,
    "generate": _generate,
}


def _rows(file: Path) -> list[dict[str, str]]:
    with file.open(encoding="utf-8", newline="") as opened:
        return list(csv.DictReader(opened))


def _read(file: Path) -> dict[str, Any]:
    return read_json(file, remedy=f"remove {file.parent} and run again")
