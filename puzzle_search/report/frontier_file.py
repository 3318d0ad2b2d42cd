"""``frontier.json``: the points of a frontier, each a child that can be built."""

from __future__ import annotations

from pathlib import Path

from puzzle_search.arch import ArchitectureSpec
from puzzle_search.errors import InputError
from puzzle_search.files import check_keys, read_json

FORMAT = "puzzle-search.frontier/1"
FRONTIER_FILE = "frontier.json"
_REMEDY = "write it anew: puzzle-search frontier --out FOLDER"
_OF_SOLUTION = ("status", "score", "gap", "scenarios")


def read_frontier(file: Path) -> list[ArchitectureSpec]:
    """The children of a frontier in its order, each with the solution that it came from.

    Raises:
        InputError: the file is not of this format, or a point of it is not whole.
    """
    data = read_json(file, remedy=_REMEDY)
    if data.get("format") != FORMAT:
        raise InputError(f"{file} is not a {FORMAT} file", remedy=_REMEDY)
    check_keys(data, file, required={"format", "parent", "axis", "asked", "evidence", "points"})
    if not isinstance(data["points"], list) or not data["points"]:
        raise InputError(f"{file} has no points", remedy=_REMEDY)
    specs = []
    for number, point in enumerate(data["points"], start=1):
        where = f"{file}, point {number}"
        if not isinstance(point, dict) or not {"blocks", *_OF_SOLUTION} <= point.keys():
            raise InputError(f"{where} is not whole", remedy=_REMEDY)
        solution = {key: point[key] for key in _OF_SOLUTION} | {"asked": data["asked"]}
        specs.append(ArchitectureSpec.from_parts(data["parent"], point["blocks"], solution, where))
    return specs
