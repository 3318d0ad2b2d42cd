"""A group of commands of which one needs no name."""

from __future__ import annotations

from typing import Any

from typer.core import TyperGroup

_HELP = {"-h", "--help"}


class DefaultGroup(TyperGroup):
    """Arguments that name no command go to the group's first."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """See the class."""
        if args and args[0] not in {*self.commands, *_HELP}:
            args = [next(iter(self.commands)), *args]
        return super().parse_args(ctx, args)
