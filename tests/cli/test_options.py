"""What Typer gives its users: choices listed and refused, completion, no option without effect."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest

from puzzle_search import choices
from puzzle_search.cli.main import app
from puzzle_search.cost import memory
from puzzle_search.distill.trackers import TRACKERS
from puzzle_search.errors import InputError
from puzzle_search.model.dtypes import torch_dtype
from puzzle_search.runtime import precision
from puzzle_search.solve.problem import engine_limits
from puzzle_search.solve.question import tables
from tests.pico import Pico, environment, run_here

# A command, the arguments that it needs, and its options that take one of a few names.
CHOICES: list[tuple[str, str, dict[str, Any]]] = [
    (
        "solve",
        "",
        {
            "--goal": choices.Goal,
            "--backend": choices.Backend,
            "--portable": choices.LoadingEngine,
            "--dtype": choices.ServingDtype,
        },
    ),
    (
        "refine",
        "--parent . --library . --data .",
        {"--backend": choices.Backend, "--dtype": choices.ServingDtype},
    ),
    ("solve-tables", ".", {"--goal": choices.TableGoal, "--backend": choices.Backend}),
    ("frontier", "", {"--axis": choices.Axis, "--portable": choices.LoadingEngine}),
    ("explain", "x.yaml", {"--dtype": choices.ServingDtype}),
    ("compare", "x.yaml y.yaml", {"--dtype": choices.ServingDtype}),
    (
        "profile",
        "--model x --space y --out z",
        {
            "--device": choices.DeviceName,
            "--dtype": choices.MeasuredDtype,
            "--engine": choices.ProfileEngine,
            "--executor": choices.ExecutorName,
        },
    ),
    (
        "library",
        "--parent . --space x --data . --out y",
        {"--device": choices.DeviceName, "--dtype": choices.TorchDtype},
    ),
    ("score", "--parent . --library . --space x --data . --out y",
     {"--executor": choices.ExecutorName}),
    ("build", "x --parent . --library . --out y", {"--dtype": choices.TorchDtype}),
    (
        "distill",
        "--parent . --child . --data . --out y --tokens 1",
        {"--out-dtype": choices.TorchDtype, "--track": choices.Tracker},
    ),
    ("bench latency", "x", {"--dtype": choices.MeasuredDtype, "--device": choices.DeviceName}),
]  # fmt: skip
CASES = [(c, needed, o, t) for c, needed, options in CHOICES for o, t in options.items()]


@pytest.mark.parametrize(("command", "needed", "option", "choice"), CASES)
def test_choices_are_listed_and_others_refused(
    command: str,
    needed: str,
    option: str,
    choice: Any,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    app([*command.split(), "--help"], standalone_mode=False)
    names = get_args(choice)
    [line] = re.findall(rf"^.* {option} .*$", capsys.readouterr().out, flags=re.MULTILINE)
    assert "|".join(names) in line
    with pytest.raises(SystemExit) as ended:
        app([*command.split(), *needed.split(), option, "abacus"])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert f"'{option}'" in said
    assert "abacus" in said
    assert all(repr(name) in said for name in names)


def test_choices_are_what_the_library_knows() -> None:
    assert get_args(choices.Tracker) == TRACKERS
    assert get_args(choices.LoadingEngine) == tuple(engine_limits.ENGINES)
    assert set(get_args(choices.TableGoal)) == set(tables._GOALS)
    assert set(get_args(choices.ServingDtype)) == set(memory._DTYPES)
    assert set(get_args(choices.MeasuredDtype)) == set(precision._PRECISIONS)
    assert len({torch_dtype(name) for name in get_args(choices.TorchDtype)}) == 2


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("sol", {"solve", "solve-tables"}),
        ("solve --back", {"--backend"}),
        ("solve --backend ", {"scip", "highs", "cp-sat"}),
        ("bench latency x --device ", {"cpu", "cuda"}),
        ("bench x --dev", {"--device"}),
    ],
)
def test_the_shell_completes(words: str, expected: set[str]) -> None:
    typed = f"puzzle-search {words}"
    asked = {
        "_PUZZLE_SEARCH_COMPLETE": "complete_bash",
        "COMP_WORDS": typed,
        "COMP_CWORD": str(len(typed.split(" ")) - 1),
    }
    start = (
        "import sys; sys.argv[0] = 'puzzle-search'\nfrom puzzle_search.cli.main import main\nmain()"
    )
    ended = subprocess.run(
        [sys.executable, "-c", start],
        env=environment() | asked,
        capture_output=True,
        text=True,
        check=False,
    )
    assert set(ended.stdout.split()) == expected, ended.stderr


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("generate {parent} --prompt abc --top-p 0.5", "greedy"),
        ("generate {parent} --prompt abc --system s", "--chat"),
        ("bench {parent} --max-load --num-iters 3", "--requests"),
        ("bench {parent} --requests 3", "--max-load"),
        ("evaluate {parent} {parent} --data {corpus} --batch-size 4", "--tasks"),
        ("solve --target-tps 6000 --min-distance 8", "--solutions"),
    ],
)
def test_an_option_without_effect_is_refused(words: str, named: str, pico: Pico) -> None:
    with pytest.raises(InputError) as refused:
        run_here(*words.format(parent=pico.parent, corpus=pico.corpus).split())
    assert named in f"{refused.value.message} {refused.value.remedy}"


def test_a_folder_is_no_place_for_a_spec(tmp_path: Path) -> None:
    for command in ("solve", "solve-tables ."):
        with pytest.raises(InputError, match=re.escape(str(tmp_path))):
            run_here(*command.split(), "--out", tmp_path)
