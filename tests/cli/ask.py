"""Ask every kind of question: ``python ask.py FOLDER [PACKAGE ...]``.

Works in FOLDER, with whatever ``puzzle_search`` this interpreter has; PACKAGEs cannot be imported.
Prints OK at the end. ``make test-solve`` runs it where torch is really absent.
"""

from __future__ import annotations

import os
import sys
from importlib.abc import MetaPathFinder
from pathlib import Path
from typing import Any

QUESTIONS = """\
solve --gpu h100 --target-tps 6000
solve --gpu h100 --target-tps 6000 --out child.yaml --json
solve --target-tps 9000 --tp any --backend highs --out faster.yaml
solve --target-tps 4000 --gpu l40s=0.9,h100=2.5 --tp any --dtype fp8
solve --target-tps 6000 --solutions 2 --min-distance 4
frontier --points 3 --from 3000 --to 6000
explain child.yaml
compare child.yaml faster.yaml
import nvlabs library --out tables
solve-tables tables --out small.yaml
explain small.yaml --problem tables
"""
# Alone in needing scipy.
CALIBRATE = "calibrate --derive-from h100 --sheet l40s --out derived.yaml"
HEAVY = {"torch", "transformers", "safetensors", "tokenizers"}


class Absent(MetaPathFinder):
    """As if these packages were not installed."""

    def __init__(self, packages: set[str]) -> None:
        self.packages = packages

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> None:
        name = fullname.partition(".")[0]
        if name in self.packages:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def main() -> None:
    folder, *absent = sys.argv[1:]
    sys.meta_path.insert(0, Absent(set(absent)))
    sys.path.append(str(Path(__file__).resolve().parents[1] / "imports"))
    from nvlabs import write_library

    from puzzle_search.cli.main import app

    os.chdir(folder)
    write_library(Path("library"))
    for line in [*QUESTIONS.splitlines(), *([] if "scipy" in absent else [CALIBRATE])]:
        app(line.split(), standalone_mode=False)
    assert not HEAVY & sys.modules.keys()
    print("OK")


if __name__ == "__main__":
    main()
