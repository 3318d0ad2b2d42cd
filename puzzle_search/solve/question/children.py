"""A child by whatever people have of it: its spec, its checkpoint folder, or its run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from puzzle_search.arch import ArchitectureSpec, ParentConfig
from puzzle_search.errors import InputError
from puzzle_search.files import read_json
from puzzle_search.solve.question.run_folder import RunFolder, is_run, run_around

_SPEC = "architecture.yaml"


@dataclass(frozen=True, kw_only=True)
class FoundChild:
    """A child's spec.

    Attributes:
        home: the run directory that it is of, else its checkpoint folder, else None.
    """

    spec: ArchitectureSpec
    home: Path | None


def find_child(path: Path) -> FoundChild:
    """The child of a spec file, of a folder that ``build`` or ``distill`` wrote, or of a run.

    Raises:
        InputError: there is none, or a file is damaged.
    """
    if not path.is_dir():
        return FoundChild(spec=ArchitectureSpec.from_file(path), home=run_around(path))
    if is_run(path):
        return FoundChild(spec=RunFolder.open(path).spec, home=path)
    if not (path / _SPEC).is_file():
        raise InputError(
            f"{path} is neither a run directory nor a child's folder: it has no {_SPEC}",
            remedy="name a spec (YAML), a run directory, or a folder of 'build' or 'distill'",
        )
    spec = ArchitectureSpec.from_file(path / _SPEC)
    return FoundChild(spec=spec, home=run_around(path) or path)


def common_home(children: Sequence[FoundChild]) -> Path | None:
    """What children are held against together: the first run that one is of, else a checkpoint."""
    homes = [child.home for child in children if child.home is not None]
    return next(filter(is_run, homes), homes[0] if homes else None)


def find_checkpoint(path: Path) -> Path:
    """The folder of a run's child, or the folder itself where it is no run directory."""
    return RunFolder.open(path).child if is_run(path) else path


def parent_of_child(folder: Path) -> ParentConfig:
    """The parent that a child's ``config.json`` tells of.

    Raises:
        InputError: it tells of none.
    """
    file = folder / "config.json"
    kept = read_json(file, remedy="name the parent with --model").get("puzzle_search")
    if not isinstance(kept, dict) or not isinstance(kept.get("parent_config"), dict):
        raise InputError(f"{file} tells of no parent", remedy="name the parent with --model")
    return ParentConfig.from_dict(
        kept["parent_config"], name=str(kept.get("parent")), where=f"{file}, parent_config"
    )
