"""How a command computes, where that was left to it: in which precision, with what threads."""

from __future__ import annotations

import os
import sys


def let_threads_sleep() -> None:
    """Let torch's threads sleep while they wait, unless the environment says otherwise.

    By default they spin for each other: beside another busy process, one that waits takes the core
    that the other needs. Has an effect before torch is loaded.
    """
    if "torch" not in sys.modules:
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def computed_in(dtype: str, device: str) -> str:
    """The precision asked for; for ``auto`` the fastest here, said in one line.

    The processes of ``torchrun`` on CPUs take fp32: each would time its own.
    """
    from puzzle_search.model.dtypes import fastest_dtype

    if dtype != "auto":
        return dtype
    if device == "cpu" and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        return "fp32"
    name, why = fastest_dtype(device)
    print(f"computing in {name}: {why}", file=sys.stderr)
    return name
