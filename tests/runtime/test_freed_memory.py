"""Pages that a step's activations take, by the system's own count."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

# A block that glibc maps afresh each time, taken, written and freed again and again.
FAULTS = """
import resource, sys, torch
from puzzle_search.runtime import keep_freed_memory

if sys.argv[1] == "keep":
    keep_freed_memory(torch.device("cpu"))
before = 0
for step in range(6):
    if step == 2:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.zeros(64 << 20, dtype=torch.uint8)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc")
def test_what_a_step_frees_is_there_for_the_next() -> None:
    faults = {
        how: int(subprocess.check_output([sys.executable, "-c", FAULTS, how], text=True))
        for how in ("keep", "give back")
    }
    assert faults["keep"] * 4 < faults["give back"]
