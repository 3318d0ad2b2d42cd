"""The hint at the next command."""

from __future__ import annotations

import shlex


def tell_next(*commands: str) -> None:
    """Print what may come next, each command on a line of its own."""
    for command in commands:
        print(f"next: {command}")


def quoted(word: object) -> str:
    """A word as the shell takes it."""
    return shlex.quote(str(word))
