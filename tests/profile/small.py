"""A small grid of points, and the pico parent measured on it."""

from __future__ import annotations

from typing import Any

from puzzle_search.cost import Profile, parse_dtype
from puzzle_search.profile import ProfileGrid, measure_profile, open_device
from tests.pico import Pico

GRID = ProfileGrid(batches=(1, 2), contexts=(9, 16), prompts=(8,), adaptive=False)


def measure(
    pico: Pico, grid: ProfileGrid = GRID, *, device: str = "cpu", dtype: str = "fp32", **asked: Any
) -> Profile:
    asked = {"max_minutes": 0} | asked
    number = parse_dtype(dtype)
    return measure_profile(pico.config, pico.space, open_device(device), number, grid, **asked)
