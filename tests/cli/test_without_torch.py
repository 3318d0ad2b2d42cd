"""Who only asks questions needs no torch; what is missing is answered with how to install it."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from puzzle_search.packages import _WHOLE, EXTRAS, missing
from tests.cli.ask import HEAVY
from tests.pico import ROOT, environment

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def name_of(requirement: str) -> str:
    return re.split(r"[<>=;\[ ]", requirement)[0]


def module_of(requirement: str) -> str:
    modules = {"pyyaml": "yaml", "nvidia-ml-py": "pynvml"}
    return modules.get(name_of(requirement), name_of(requirement))


LINES = (ROOT / "requirements-solve.txt").read_text(encoding="utf-8").splitlines()
ASKING = {line for line in LINES if line and not line.startswith("#")}
WHOLE = set(PROJECT["dependencies"])


@pytest.mark.parametrize("without", [(), ("scipy",)])
def test_every_question_is_answered_with_what_is_listed(
    tmp_path: Path, without: tuple[str, ...]
) -> None:
    absent = {*map(module_of, WHOLE - ASKING), *without}
    ended = subprocess.run(
        [sys.executable, ROOT / "tests/cli/ask.py", tmp_path, *sorted(absent)],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.endswith("OK\n")


def test_what_asking_needs_is_part_of_the_whole() -> None:
    assert ASKING < WHOLE
    assert not HEAVY & set(map(name_of, ASKING))


# What a command misses first where HEAVY, scipy and matplotlib are absent.
COMMANDS = """\
evaluate parent parent --data corpus
bench parent
generate parent --prompt abc
profile --model llama-3.1-70b --space space.yaml --out out
library --parent parent --space space.yaml --data corpus --out out
build spec.yaml --parent parent --library library --out out
distill --parent parent --child parent --data corpus --out out --tokens 1
score --parent parent --library library --space space.yaml --data corpus --out out
refine --parent parent --library library --data corpus
run recipe.yaml
calibrate tables --out out
frontier --points 2 --from 3000 --to 4000 --workers 1 --out out
"""
START = """\
import sys
from puzzle_search.cli.main import main
from tests.cli.ask import Absent
sys.meta_path.insert(0, Absent(set(sys.argv[1:])))
for line in sys.stdin.read().splitlines():
    sys.argv = ["puzzle-search", *line.split()]
    try:
        main()
    except SystemExit as ended:
        print("exit", ended.code, file=sys.stderr)
"""


def test_a_missing_package_is_one_message(tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", START, *HEAVY, "scipy", "matplotlib"],
        input=COMMANDS,
        env=environment(),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == ""
    said = re.findall(
        r"error: (\w+) is not installed\n  remedy: pip install (\S+)\nexit 2\n", ended.stderr
    )
    *heavy, calibrate, frontier = said
    assert len(said) == len(COMMANDS.splitlines())
    assert all(package in HEAVY and line == "puzzle-search" for package, line in heavy)
    assert calibrate == ("scipy", "scipy")
    assert frontier == ("matplotlib", "'puzzle-search[plots]'")
    assert "Traceback" not in ended.stderr


def test_every_package_is_installed_by_the_line_that_is_told() -> None:
    extras = PROJECT["optional-dependencies"]
    for module, extra in EXTRAS.items():
        told = missing(ModuleNotFoundError(name=f"{module}.sub"))
        [distribution] = re.findall(r"(\S+) is not installed", told.message)
        assert distribution in map(name_of, extras[extra])
        assert told.remedy == f"pip install 'puzzle-search[{extra}]'"
    for module in _WHOLE:
        told = missing(ModuleNotFoundError(name=module))
        assert told.message.split()[0] in map(name_of, WHOLE)
    for requirement in WHOLE:
        told = missing(ModuleNotFoundError(name=module_of(requirement)))
        assert told.remedy in (f"pip install {name_of(requirement)}", "pip install puzzle-search")


def test_a_module_of_our_own_is_a_fault_of_ours() -> None:
    with pytest.raises(ModuleNotFoundError):
        missing(ModuleNotFoundError(name="puzzle_search.nowhere"))
