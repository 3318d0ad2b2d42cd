"""What a page is made of: specs, frontiers and a run directory, and what they are held against."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from puzzle_search.arch import ArchitectureSpec
from puzzle_search.errors import InputError
from puzzle_search.report.frontier_file import FRONTIER_FILE, read_frontier
from puzzle_search.solve.question.children import FoundChild, common_home, find_child
from puzzle_search.solve.question.run_folder import RunFolder, is_run
from puzzle_search.solve.question.setting import AskedSetting, Setting, find_setting

Kind = Literal["parent", "spec", "frontier", "run"]


@dataclass(frozen=True, kw_only=True)
class Child:
    """A spec with the name that the page calls it by; ``group`` is the frontier it is of."""

    name: str
    kind: Kind
    spec: ArchitectureSpec
    group: str = ""


@dataclass(frozen=True, kw_only=True)
class Sources:
    """What a page is made of.

    Attributes:
        children: the parent first.
        setting: what all are held against.
        as_solved: whether children stand at the batch sizes that they were solved for, where they
            say so; otherwise each at its fastest.
        run: the run directory, if one was named.
    """

    children: tuple[Child, ...]
    setting: Setting
    as_solved: bool
    run: RunFolder | None


def find_sources(
    paths: Sequence[Path],
    asked: AskedSetting | None = None,
) -> Sources:
    """Read everything that a page shall show.

    Args:
        paths: architecture specs, folders of ``frontier --out``, at most one run directory.
        asked: of the setting that they are held against, as in `find_setting`.

    Raises:
        InputError: something named is not there, not valid, or of another parent.
    """
    children: list[Child] = []
    runs: list[RunFolder] = []
    found: list[FoundChild] = []
    stems = [path.stem for path in paths]
    for path in paths:
        frontier = path / FRONTIER_FILE if path.is_dir() else path
        if is_run(path):
            runs.append(RunFolder.open(path))
            found.append(FoundChild(spec=runs[-1].spec, home=path))
            children.append(Child(name="child", kind="run", spec=runs[-1].spec))
        elif frontier.suffix == ".json" and frontier.is_file():
            group = frontier.parent.name or "frontier"
            specs = read_frontier(frontier)
            children += [
                Child(name=f"{group} {number}", kind="frontier", spec=spec, group=str(frontier))
                for number, spec in enumerate(specs, start=1)
            ]
        else:
            name = path.stem if stems.count(path.stem) == 1 else str(path)
            found.append(find_child(path))
            children.append(Child(name=name, kind="spec", spec=found[-1].spec))
    if len(runs) > 1:
        raise InputError("a page shows one run", remedy="make a page for each run directory")
    asked = replace(asked or AskedSetting(), home=common_home(found))
    # Those that say what they were solved for decide on device and precision.
    specs = sorted((c.spec for c in children), key=lambda spec: "asked" not in spec.solution)
    setting = find_setting(specs, asked)
    for child in children:
        _check(child, setting, any_parent=asked.model is not None)
    parent = Child(
        name=setting.config.name, kind="parent", spec=ArchitectureSpec.identity(setting.config)
    )
    return Sources(
        children=(parent, *children),
        setting=setting,
        as_solved=not asked.of_costs,
        run=runs[0] if runs else None,
    )


def _check(child: Child, setting: Setting, *, any_parent: bool) -> None:
    try:
        setting.check_fits(child.spec)
    except InputError as error:
        raise InputError(f"{child.name}: {error.message}", remedy=error.remedy) from error
    if child.kind != "run" and child.spec.parent != setting.config.name and not any_parent:
        raise InputError(
            f"the parent of {child.name} is {child.spec.parent!r}, not {setting.config.name!r}",
            remedy="give --model to take all as children of that parent",
        )
