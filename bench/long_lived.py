"""Memory of one process that solves and draws frontiers again and again.

    python bench/long_lived.py [--solves 300] [--frontiers 20]

Ten questions about Llama-3.1-70B on an H100 and SmolLM2-135M in llama.cpp, in turn. Prints the
resident memory when each was answered once and at the end, and one JSON line; fails where it has
grown by more than 5%.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import io
import json
import sys
import tempfile
from pathlib import Path

from puzzle_search.cli.main import app

LLAMA = ("--gpu", "h100", "--tp", "1")
PROFILE = "profiles/amd-epyc-avx2-2-threads/smollm2-135m-llama.cpp-q8_0"
SMOLLM2 = ("--model", "smollm2-135m", "--gpu", PROFILE, "--scenario", "128/128")
_ALLOWED_GROWTH = 0.05
_WARM = 10


def ask(*words: object) -> None:
    """A command in this process, its output thrown away."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        app([str(word) for word in words], standalone_mode=False)


def resident_mb() -> float:
    """Memory that this process holds, garbage collected."""
    gc.collect()
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return next(int(line.split()[1]) for line in status.splitlines() if "VmRSS" in line) / 1024


def main() -> int:
    """Ask, measure, print; 1 where memory grew by more than 5%."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--solves", type=int, default=300)
    parser.add_argument("--frontiers", type=int, default=20)
    options = parser.parse_args()
    measured = []
    with tempfile.TemporaryDirectory() as made:
        total = options.solves + options.frontiers
        for number in range(total):
            speedup = 1.05 + (number % _WARM) / 25
            model = LLAMA if number % _WARM == 0 else SMOLLM2
            # Frontiers among the first solves too: they load what solves do not.
            if number % (total // options.frontiers) == 2:
                ask("frontier", *SMOLLM2, "--to", f"speedup={speedup}", "--points", 5,
                    "--out", Path(made) / str(number))  # fmt: skip
            else:
                ask("solve", *model, "--target-speedup", speedup, "--json")
            measured.append(resident_mb())
            if number % 20 == _WARM:
                print(f"{number:4} {measured[-1]:8.1f} MB", flush=True)
    warm, last = measured[_WARM], measured[-1]
    growth = last / warm - 1
    print(f"after the tenth {warm:.1f} MB, after {len(measured)} {last:.1f} MB: {growth:+.1%}")
    print(json.dumps({"benchmark": "long_lived", "warm_mb": warm, "last_mb": last,
                      "growth": growth}))  # fmt: skip
    return int(growth > _ALLOWED_GROWTH)


if __name__ == "__main__":
    sys.exit(main())
