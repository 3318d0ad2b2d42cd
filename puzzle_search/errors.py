"""The one family of errors that a user can act on."""

from __future__ import annotations

from functools import partial


class PuzzleSearchError(Exception):
    """Base of every error that the command line reports as one message with exit code 2.

    Args:
        message: what is wrong and where (file, row, field).
        remedy: what to do next.
    """

    def __init__(self, message: str, *, remedy: str) -> None:
        super().__init__(f"{message}\n  remedy: {remedy}")
        self.message = message
        self.remedy = remedy

    def __reduce__(self) -> tuple[partial[PuzzleSearchError], tuple[()]]:
        """Errors cross process boundaries whole."""
        return partial(type(self), self.message, remedy=self.remedy), ()


class InputError(PuzzleSearchError):
    """A file, option or value that the user gave cannot be used."""


class InfeasibleError(PuzzleSearchError):
    """No architecture of the search space meets the limits that were asked."""


class MissingDependencyError(PuzzleSearchError):
    """An optional package or device that the command needs is absent."""
