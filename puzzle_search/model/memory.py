"""Too little GPU memory, told as a mistake that a user can mend."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from puzzle_search.errors import InputError

_SMALLER_LIMIT = "run the same command again with a smaller --max-memory: it goes on where it was"


@contextlib.contextmanager
def gpu_memory_reported(what: str, remedy: str = _SMALLER_LIMIT) -> Iterator[None]:
    """Say what ran out of GPU memory, in place of torch's error.

    Args:
        what: the work, which the message begins with.
        remedy: how it takes less.

    Raises:
        InputError: the GPU's memory ran out.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise InputError(f"{what} ran out of GPU memory: {error}", remedy=remedy) from error
