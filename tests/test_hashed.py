"""``constraints-hashed.txt`` has the tested versions, and a hash of every package."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def pins(name: str) -> dict[str, str]:
    found = re.findall(r"^([a-z0-9-]+)==([^ \n]+)", (ROOT / name).read_text(), re.M)
    return dict(found)


def test_what_is_tested_is_pinned_by_its_hash() -> None:
    tested, hashed = pins("constraints.txt"), pins("constraints-hashed.txt")
    assert {name: hashed[name] for name in hashed.keys() & tested.keys()} == {
        name: tested[name] for name in hashed.keys() & tested.keys()
    }
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = {re.split(r"[<>=!~ ]", line)[0] for line in project["dependencies"]}
    assert needed <= hashed.keys()
    text = (ROOT / "constraints-hashed.txt").read_text()
    for entry in re.split(r"\n(?=[a-z])", text.strip()):
        assert re.search(r"--hash=sha256:[0-9a-f]{64}", entry), entry
