"""The one family of errors that a user can act on."""

from __future__ import annotations

from functools import partial

_LONGEST = 2000  # characters of a message or a remedy


class PuzzleSearchError(Exception):
    """Base of every error that the command line reports as one message with exit code 2.

    Args:
        message: what is wrong and where (file, row, field).
        remedy: what to do next.
    """

    def __init__(self, message: str, *, remedy: str) -> None:
        message, remedy = _shown(message), _shown(remedy)
        super().__init__(f"{message}\n  remedy: {remedy}")
        self.message = message
        self.remedy = remedy

    def __reduce__(self) -> tuple[partial[PuzzleSearchError], tuple[()]]:
        """Errors cross process boundaries whole."""
        return partial(type(self), self.message, remedy=self.remedy), ()


def _shown(text: str) -> str:
    """Text with control characters escaped, and cut in the middle where it quotes megabytes."""
    if len(text) > _LONGEST:
        kept = _LONGEST // 2 - 20
        text = f"{text[:kept]} [... {len(text) - 2 * kept:,} characters ...] {text[-kept:]}"
    return "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)


class InputError(PuzzleSearchError):
    """A file, option or value that the user gave cannot be used."""


class InfeasibleError(PuzzleSearchError):
    """No architecture of the search space meets the limits that were asked."""


class MissingDependencyError(PuzzleSearchError):
    """An optional package or device that the command needs is absent."""
