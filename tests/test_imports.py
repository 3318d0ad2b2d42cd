"""Who imports whom, and what stays out of the light packages."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "puzzle_search"
HEAVY = ("torch", "transformers")

# Down this list only. Verbs share a level and do not see each other; everyone may import HELPERS.
HELPERS = {"choices", "engines", "errors", "executor", "files", "packages", "progress", "resources"}
VERBS = {
    "build",
    "distill",
    "evaluate",
    "explain",
    "imports",
    "library",
    "profile",
    "report",
    "score",
    "serve",
}
LEVELS: list[set[str]] = [
    {"__main__"},
    {"cli"},
    {"pipeline"},
    VERBS,
    {"export"},
    {"data"},
    {"runtime"},
    {"checkpoint"},
    {"model"},
    {"solve"},
    {"cost"},
    {"arch"},
    HELPERS | {"__init__"},
]
LEVEL = {name: number for number, names in enumerate(LEVELS) for name in names}
MODULES = sorted((ROOT / PACKAGE).rglob("*.py"))


def loaded_after(statement: str) -> set[str]:
    """Top-level modules in a fresh interpreter after a statement."""
    report = (
        "import json, sys; print(json.dumps(sorted({n.partition('.')[0] for n in sys.modules})))"
    )
    done = subprocess.run(
        [sys.executable, "-c", f"{statement}\n{report}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize(
    "module",
    [
        "puzzle_search.arch, puzzle_search.cost, puzzle_search.solve",
        "puzzle_search.imports, puzzle_search.explain",
        "puzzle_search.report.page.render, puzzle_search.report.page.sources",
        "puzzle_search.cli.main",
    ],
)
def test_light_packages_load_no_torch(module: str) -> None:
    loaded = loaded_after(f"import {module}")
    assert PACKAGE in loaded
    assert not loaded.intersection(HEAVY)


def test_profiles_need_no_solver() -> None:
    assert "ortools" not in loaded_after("import puzzle_search.profile, puzzle_search.solve")


def test_help_loads_no_torch() -> None:
    loaded = loaded_after(
        "import sys\n"
        "from puzzle_search.cli.main import main\n"
        "sys.argv = ['puzzle-search', '--help']\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code"
    )
    assert PACKAGE in loaded
    assert not loaded.intersection(HEAVY)


def room(module: str) -> str | None:
    """The package or helper of ``puzzle_search`` that a dotted name lies in."""
    first, _, rest = module.partition(".")
    return rest.partition(".")[0] or "__init__" if first == PACKAGE else None


def imported(file: Path) -> Iterator[tuple[int, str]]:
    """Line and absolute dotted name of every import, those inside functions too."""
    parts = list(file.relative_to(ROOT).with_suffix("").parts)
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(parts[: len(parts) - node.level]) if node.level else ""
            module = ".".join(filter(None, [base, node.module]))
            if module == PACKAGE:  # `from puzzle_search import solve`
                yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)
            else:
                yield node.lineno, module


def test_every_module_has_a_level() -> None:
    rooms = {file.relative_to(ROOT / PACKAGE).with_suffix("").parts[0] for file in MODULES}
    assert rooms <= LEVEL.keys()


@pytest.mark.parametrize("file", MODULES, ids=lambda file: str(file.relative_to(ROOT)))
def test_imports_go_down(file: Path) -> None:
    own = file.relative_to(ROOT / PACKAGE).with_suffix("").parts[0]
    wrong = []
    for line, module in imported(file):
        other = room(module)
        if other is None or other in (own, "__version__"):
            continue
        if own in HELPERS and other in HELPERS:
            continue
        if LEVEL[other] <= LEVEL[own]:
            wrong.append(f"line {line}: {own} imports {module}")
    assert not wrong


@pytest.mark.parametrize("package", ["arch", "cost", "solve", "imports", "report"])
def test_light_packages_name_no_torch_anywhere(package: str) -> None:
    files = sorted((ROOT / PACKAGE / package).rglob("*.py"))
    assert files
    wrong = [
        f"{file.name}, line {line}: {module}"
        for file in files
        for line, module in imported(file)
        if module.partition(".")[0] in HEAVY
    ]
    assert not wrong


def test_the_reader_of_imports_sees_every_form(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    file = tmp_path / PACKAGE / "solve" / "a.py"
    file.parent.mkdir(parents=True)
    file.write_text(
        "import puzzle_search.cli.main\n"
        "from puzzle_search import cost\n"
        "from puzzle_search.arch import Gqa\n"
        "from . import b\n"
        "from ..build import c\n"
        "def f():\n"
        "    import torch.nn as nn\n"
    )
    assert sorted(imported(file)) == [
        (1, "puzzle_search.cli.main"),
        (2, "puzzle_search.cost"),
        (3, "puzzle_search.arch"),
        (4, "puzzle_search.solve"),
        (5, "puzzle_search.build"),
        (7, "torch.nn"),
    ]
    assert [room(module) for _, module in sorted(imported(file))] == [
        "cli",
        "cost",
        "arch",
        "solve",
        "build",
        None,
    ]


def test_imports_uses_light_packages_only() -> None:
    allowed = {"solve", "cost", "arch", "imports", "__version__", "__init__"} | HELPERS
    files = sorted((ROOT / PACKAGE / "imports").rglob("*.py"))
    assert files
    used = {room(module) for file in files for _, module in imported(file)} - {None}
    assert used <= allowed
