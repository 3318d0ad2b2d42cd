"""The commands by name, each imported when it is looked up: `solve` pays for no other's options."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from importlib import import_module
from typing import Any

import typer
from typer.core import TyperGroup

from puzzle_search.cli.checked import CheckedCommand

_GROUPS = ("bench", "import")
_COMMANDS = (
    "solve", "frontier", "solve-tables", "explain", "compare", "inspect", "report", "plot", "run",
    "status", "profile", "library", "score", "refine", "build", "distill", "evaluate", "calibrate",
    "generate", "export", "serve", "init", "doctor",
)  # fmt: skip


class CommandGroup(TyperGroup):
    """All commands; those that it is made with come before the groups."""

    def __init__(self, *, commands: Mapping[str, Any], **rest: Any) -> None:
        super().__init__(**rest)
        self.commands: Any = _OnDemand(commands)


class _OnDemand(Mapping[str, Any]):
    def __init__(self, others: Mapping[str, Any]) -> None:
        self._others = others

    def __iter__(self) -> Iterator[str]:
        return iter((*_COMMANDS, *self._others, *_GROUPS))

    def __len__(self) -> int:
        return len(_GROUPS) + len(_COMMANDS) + len(self._others)

    def __getitem__(self, name: str) -> Any:
        if name in self._others:
            return self._others[name]
        if name not in (*_GROUPS, *_COMMANDS):
            raise KeyError(name)
        return _imported(name)


@cache
def _imported(name: str) -> Any:
    """A command is the function of that name in the module of that name, a group its app."""
    app = typer.Typer(pretty_exceptions_enable=False)
    if name in _GROUPS:
        module = import_module(f"puzzle_search.cli.{'import_' if name == 'import' else name}")
        app.add_typer(getattr(module, f"{name}_app"), name=name)
    else:
        own = name.replace("-", "_")
        module = import_module(f"puzzle_search.cli.{own}")
        app.command(name, cls=CheckedCommand)(getattr(module, own))
    return typer.main.get_group(app).commands[name]
