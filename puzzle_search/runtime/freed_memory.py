"""Keep what a CPU process frees, for the next step to take."""

from __future__ import annotations

import ctypes
import platform

import torch

# Of mallopt(3).
_TRIM_THRESHOLD = -1
_MMAP_MAX = -4
_LARGEST_INT = 2**31 - 1


def keep_freed_memory(device: torch.device) -> None:
    """On a CPU with glibc, keep freed memory in this process from now on.

    By default glibc gives large blocks back to the system as soon as they are freed, and every step
    waits for the system to clear the pages of its activations anew. From now on all blocks lie in
    the heap, of which the system gets back what is free at its end beyond 2 GiB.
    """
    if device.type == "cpu" and platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(_MMAP_MAX, 0)
        libc.mallopt(_TRIM_THRESHOLD, _LARGEST_INT)
