"""``puzzle-search doctor``."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from puzzle_search.cli.options import JsonOption

if TYPE_CHECKING:
    from collections.abc import Sequence

    from puzzle_search.profile.hardware.products import ProductSpeed


def doctor(as_json: JsonOption = False) -> None:
    """Say what this machine has: GPU, engines, packages, memory, and which precision is fast."""
    from puzzle_search import __version__
    from puzzle_search.cli.next_step import tell_next
    from puzzle_search.pipeline.recipes.machine import examine

    machine = examine()
    if as_json:
        print(json.dumps(machine.as_dict()))
        return
    print(f"puzzle-search {__version__}, Python {machine.python}, {machine.system}")
    threads = "" if machine.threads is None else f", torch uses {machine.threads} threads"
    _row("cpu", f"{machine.processor}, {machine.cores} cores{threads}")
    _row("memory", f"{_gb(machine.available_bytes)} of {_gb(machine.memory_bytes)} free")
    _row("disk", f"{_gb(machine.disk_free_bytes)} free here")
    for gpu in machine.gpus:
        memory = f"{_gb(gpu.free_bytes)} of {_gb(gpu.memory_bytes)} free"
        _row("gpu", f"{gpu.name}, {memory}, driver {gpu.driver}")
    if not machine.gpus:
        _row("gpu", f"none ({machine.no_gpus})")
    _row("cuda", f"torch was built for {machine.cuda or 'none'}")
    for kind, versions in machine.packages.items():
        _row(kind, ", ".join(f"{name} {found or '-'}" for name, found in versions.items()))
    for device, speeds in machine.products.items():
        for line in _speeds(speeds):
            _row(device, line)
    for note in machine.notes():
        print(f"note: {note}")
    tell_next("puzzle-search init MODEL --out recipe.yaml")


def _row(name: str, text: str) -> None:
    print(f"{name:9}  {text}")


def _gb(size: float) -> str:
    return f"{size / 1e9:,.1f} GB"


def _speeds(speeds: Sequence[ProductSpeed]) -> list[str]:
    """What each number of rows took in each precision, against fp32."""
    lines = []
    for rows in dict.fromkeys(speed.rows for speed in speeds):
        of_rows = [speed for speed in speeds if speed.rows == rows]
        plain, fastest = of_rows[0], min(of_rows, key=lambda speed: speed.us)
        told = ", ".join(f"{s.dtype} {s.us:,.0f} us ({plain.us / s.us:.2f} x)" for s in of_rows)
        count = "1 row" if rows == 1 else f"{rows} rows"
        lines.append(f"{count} times {plain.size} x {plain.size}: {told}; fast: {fastest.dtype}")
    return lines
